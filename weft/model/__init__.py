"""Work and a chip in, time, energy and cost out.

`profile` says what a kernel asks for, `operators` what each operator of PyTorch launches, `roofline` turns a Profile
and a Chip into an Estimate, `collectives` does so for communication, `clock` places all of it on the device's clock.
"""

from __future__ import annotations

from weft.model.profile import FAMILIES, Estimate, Profile, TimeModel

__all__ = ["FAMILIES", "Estimate", "Profile", "TimeModel"]
