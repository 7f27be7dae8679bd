"""Writes weights as timm does, and what PyTorch computes with them: the oracle of the networks as torchvision has them.

    python tests/backbones/timm_weights.py NAME FOLDER

Writes `model.safetensors` and `config.json`, images and features. Nothing is downloaded. Weights as they are made are
blind to mistakes: each filter is scaled by 10^U(-2.5, 0), batch norm gets other gammas and betas than ones and zeros,
and its statistics are measured.
"""

import sys
from pathlib import Path

import numpy as np
import torch

# torchvision, of which timm takes names, defines these where it fits torch; PyPI's does not beside PyPI's for the CPU.
library = torch.library.Library("torchvision", "DEF")
for operation in ("nms", "qnms"):
    library.define(f"{operation}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
from timm.models import save_for_hf  # noqa: E402

SIZE = 224


def draw_images(count: int, generator: np.random.Generator) -> np.ndarray:
    """Returns images with large areas and fine grain, uint8 `[N, 224, 224, 3]`."""
    areas = generator.uniform(0, 255, (count, 7, 7, 3)).repeat(SIZE // 7, axis=1).repeat(SIZE // 7, axis=2)
    return np.clip(areas + generator.normal(0, 25, areas.shape), 0, 255).astype(np.uint8)


def scaled(images: np.ndarray, cfg: dict) -> torch.Tensor:
    """Returns images as the network takes them, by what its config says."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(cfg[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    return (x - mean) / deviation


def spread(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """A hook that scales the filters of a convolution apart from one another, its output then being of size one."""
    shape = (-1, 1, 1, 1)
    with torch.no_grad():
        module.weight *= (10 ** torch.empty(len(module.weight)).uniform_(-2.5, 0)).reshape(shape)
        if module.bias is not None:
            module.bias.zero_()
            module.weight /= module._conv_forward(inputs[0], module.weight, module.bias).std()
            module.bias.normal_(0, 0.3)
    return module._conv_forward(inputs[0], module.weight, module.bias)


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(1)
    generator = np.random.default_rng(1)
    cfg = {"mean": (0.45, 0.5, 0.41), "std": (0.2, 0.25, 0.3)}
    model = timm.create_model(name, pretrained=False, pretrained_cfg_overlay=cfg)
    hooks = [m.register_forward_hook(spread) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    x = scaled(draw_images(4, generator), cfg)
    with torch.no_grad():
        # Once to scale, once to measure.
        model.train()(x)
        for hook in hooks:
            hook.remove()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        model(x)
        images = draw_images(2, generator)
        model.eval()
        features = model.forward_head(model.forward_features(scaled(images, cfg)), pre_logits=True)
    save_for_hf(model, folder, safe_serialization=True)
    np.savez(folder / "oracle.npz", images=images, features=features.numpy())


if __name__ == "__main__":
    main()
