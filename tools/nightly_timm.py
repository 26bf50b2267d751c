"""Models of timm on the virtual GPU against the CPU: forward, a training step, channels last, mixed precision."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial

import torch
from nightly_checks import Checks, compare, declare_operators, gradients, on_gpu

declare_operators()

import timm  # noqa: E402

CHECKS = Checks("timm", "torchvision")

# Family: model, side of the image. Small, and narrowed where the family lets one.
MODELS: dict[str, tuple[str, int, dict[str, object]]] = {
    "resnet": ("resnet18", 64, {}),
    "resnext": ("resnext26ts", 64, {}),
    "convnext": ("convnext_atto", 64, {}),
    "vit": ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 3}),
    "deit": ("deit_tiny_distilled_patch16_224", 64, {"img_size": 64, "depth": 3}),
    "swin": ("swin_tiny_patch4_window7_224", 64, {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1)}),
    "efficientnet": ("efficientnet_b0", 64, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "mobilenetv4": ("mobilenetv4_conv_small_035", 64, {}),
    "beit": ("beit_base_patch16_224", 64, {"img_size": 64, "embed_dim": 96, "depth": 2, "num_heads": 4}),
    "maxvit": ("maxvit_pico_rw_256", 64, {"img_size": 64}),
    "mixer": ("mixer_s32_224", 64, {"img_size": 64}),
    "regnet": ("regnetx_002", 64, {}),
    "densenet": ("densenet121", 64, {"block_config": (2, 2, 2, 2), "drop_path_rate": None}),
    "coatnet": ("coatnet_pico_rw_224", 64, {"img_size": 64}),
    "ghostnet": ("ghostnet_050", 64, {"drop_path_rate": None}),
    "repvgg": ("repvgg_a0", 64, {}),
    "xcit": ("xcit_nano_12_p16_224", 64, {"depth": 2}),
}


def make(family: str) -> torch.nn.Module:
    name, _, options = MODELS[family]
    torch.manual_seed(0)
    settings = {"num_classes": 10, "drop_rate": 0.0, "drop_path_rate": 0.0, **options}
    return timm.create_model(name, pretrained=False, **settings)


def images(family: str, batch: int = 4) -> torch.Tensor:
    side = MODELS[family][1]
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def forward(family: str) -> str:
    """In evaluation, float32 and channels last."""
    here = make(family).eval()
    there = copy.deepcopy(here).cuda()
    given = images(family)
    with torch.no_grad():
        expected = here(given)
        found = there(given.cuda())
        last = there.to(memory_format=torch.channels_last)(given.cuda().to(memory_format=torch.channels_last))
    assert on_gpu(found)
    return f"{compare([found, last], [expected, expected], 2e-3, 'scores'):.0e}"


def first(scores: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The scores that are trained: a distilled model has two, whose mean is taken."""
    return sum(scores) / len(scores) if isinstance(scores, tuple) else scores


def join(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All in one row: gradients of a bias in front of a normalisation are rounding errors, and weigh nothing in it."""
    return torch.cat([tensor.detach().flatten().cpu() for tensor in tensors])


def step(family: str) -> str:
    """Gradients of a training step in float32, channels last."""
    here = make(family).train()
    there = copy.deepcopy(here).to("cuda", memory_format=torch.channels_last)
    given, labels = images(family), torch.tensor([1, 7, 2, 9])
    torch.nn.functional.cross_entropy(first(here(given)), labels).backward()
    moved = given.cuda().to(memory_format=torch.channels_last)
    torch.nn.functional.cross_entropy(first(there(moved)), labels.cuda()).backward()
    worst = compare([join(gradients(there))], [join(gradients(here))], 0.03, "gradients")
    for model in (there, here):
        torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True).step()
    compare([join(there.parameters())], [join(here.parameters())], 1e-2, "parameters")
    return f"{worst:.0e}"


def mixed(family: str, dtype: torch.dtype) -> str:
    """Two steps with autocast, scaled where the type is float16: finite, and the first loss that of float32."""
    here = make(family).train()
    there = copy.deepcopy(here).to("cuda", memory_format=torch.channels_last)
    given, labels = images(family), torch.tensor([1, 7, 2, 9])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(first(here(given)), labels)
    optimiser = torch.optim.AdamW(there.parameters(), 1e-3, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16, init_scale=256)
    moved = given.cuda().to(memory_format=torch.channels_last)
    losses = []
    for _ in range(2):
        with torch.autocast("cuda", dtype):
            scores = first(there(moved))
            loss = torch.nn.functional.cross_entropy(scores, labels.cuda())
        assert scores.dtype is dtype
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        norm = torch.nn.utils.clip_grad_norm_(there.parameters(), 1.0)
        assert bool(norm.isfinite()), norm
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        losses.append(loss.detach())
    assert all(bool(parameter.isfinite().all()) for parameter in there.parameters())
    return f"{compare(losses[:1], [expected], 0.05, 'loss'):.0e}"


for _family in MODELS:
    CHECKS.add(f"{_family} forward")(partial(forward, _family))
    CHECKS.add(f"{_family} step")(partial(step, _family))
    CHECKS.add(f"{_family} autocast float16")(partial(mixed, _family, torch.float16))
    CHECKS.add(f"{_family} autocast bfloat16")(partial(mixed, _family, torch.bfloat16))


@CHECKS.add("TF32")
def tensor_cores() -> str:
    """Convolutions as CUDA computes them by default: close to float32, and not it."""
    here = make("resnet").eval()
    there = copy.deepcopy(here).cuda()
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    with torch.no_grad():
        worst = compare([there(images("resnet").cuda())], [here(images("resnet"))], 5e-3, "scores")
    assert worst > 1e-5, worst
    return f"{worst:.0e}"


@CHECKS.add("exponential average")
def average() -> str:
    from timm.utils import ModelEmaV3

    model = make("resnet").cuda()
    kept = ModelEmaV3(model, decay=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    kept.update(model)
    expected = [parameter + 0.5 for parameter in before]
    return f"{compare(kept.module.parameters(), expected, 1e-5, 'averages'):.0e}"


@CHECKS.add("feature extraction")
def features() -> str:
    torch.manual_seed(0)
    here = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(1, 3)).eval()
    there = copy.deepcopy(here).cuda()
    given = images("resnet")
    with torch.no_grad():
        return f"{compare(there(given.cuda()), here(given), 1e-3, 'features'):.0e}"


def optimise(name: str) -> str:
    """Three steps of an optimiser of timm."""
    from timm.optim import create_optimizer_v2

    torch.manual_seed(0)
    here = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.GELU(), torch.nn.Linear(12, 3))
    there = copy.deepcopy(here).cuda()
    given = torch.randn(5, 6)
    for model, device in ((here, "cpu"), (there, "cuda")):
        optimiser = create_optimizer_v2(model, opt=name, lr=1e-2, weight_decay=0.01)
        for _ in range(3):
            optimiser.zero_grad()
            model(given.to(device)).square().mean().backward()
            optimiser.step()
    return f"{compare(there.parameters(), here.parameters(), 1e-4, 'parameters'):.0e}"


for _name in ("sgd", "adamw", "lamb", "lion", "nadamw", "adafactorbv", "adopt", "muon"):
    CHECKS.add(f"optimiser {_name}")(partial(optimise, _name))
