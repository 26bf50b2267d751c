"""Read by Python processes that a program under `weft run` starts: waits for a framework, then calls weft.install.

This folder stands first on PYTHONPATH, so this file hides another sitecustomize, which is run from here. Nothing of
Weft is imported until the process imports a framework that Weft has a front end for.
"""

import json
import os
import sys


class _Watch:
    """A finder that hands over to weft.install when one of the modules is first imported."""

    def __init__(self, text, modules):
        self.text, self.modules = text, modules

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        sys.meta_path.remove(self)
        install = sys.modules.get("weft.install")
        if install is not None and install.is_installed():
            return None  # the process has chosen for itself
        from weft.install import install_from_environment

        install_from_environment(self.text)
        return sys.meta_path[0].find_spec(name, path, target)


def _watch():
    text = os.environ.get("WEFT_INSTALL")
    if text:
        sys.meta_path.insert(0, _Watch(text, frozenset(json.loads(text)["modules"])))


def _run_hidden():
    """Runs the sitecustomize that Python would have found without this folder."""
    from importlib.machinery import PathFinder

    here = os.path.dirname(os.path.abspath(__file__))
    others = [path for path in sys.path if os.path.abspath(path or ".") != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        spec.loader.exec_module(module_from_spec(spec))


_watch()
_run_hidden()
