"""Sizes of a causal Wan transformer, read from and written to `transformer/config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrolabe_ray.errors import ConfigError


@dataclass(frozen=True)
class WanArchitecture:
    """Everything that decides the shapes of a `CausalWanModel`'s parameters.

    Raises ConfigError for sizes that no model can have.
    """

    dim: int
    num_heads: int
    num_layers: int
    ffn_dim: int
    freq_dim: int  # of the timestep sinusoid; even
    text_dim: int
    text_len: int  # keys of cross-attention; shorter prompts are padded with zeros
    in_channels: int = 16
    out_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)  # latent frames, height, width
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            sizes = value if isinstance(value, tuple) else (value,)
            if name != "eps" and not all(type(size) is int and size > 0 for size in sizes):
                raise ConfigError(f"{name} is {value!r}; sizes must be whole numbers above 0")
        if len(self.patch) != 3:
            raise ConfigError(f"patch {self.patch} must be of latent frames, height and width")
        if self.dim % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise ConfigError(
                f"dim {self.dim} / num_heads {self.num_heads} must be an even whole number of at least 6"
            )
        if self.freq_dim % 2:
            raise ConfigError(f"freq_dim {self.freq_dim} must be even (cosines and sines)")
        if self.patch[0] != 1:
            raise ConfigError(
                f"patch {self.patch} spans several latent frames; a causal model needs (1, h, w)"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch rows and columns of one latent frame. Raises ConfigError if patches do not tile it."""
        rows, columns = self.patch[1:]
        if height % rows or width % columns:
            raise ConfigError(
                f"latent frames of {height}x{width} are not tiled by patches of {rows}x{columns}"
            )
        return height // rows, width // columns


WAN_1_3B = WanArchitecture(1536, 12, 30, 8960, 256, 4096, 512)
WAN_14B = WanArchitecture(5120, 40, 40, 13824, 256, 4096, 512)


_KNOWN = {"Wan2.1-T2V-1.3B": WAN_1_3B, "Wan2.1-T2V-14B": WAN_14B}
DIFFUSERS_CLASS = "WanTransformer3DModel"


def known_size(dim: int, num_layers: int) -> str | None:
    """The released base model of this size, if there is one."""
    sizes = {name: (known.dim, known.num_layers) for name, known in _KNOWN.items()}
    return next((name for name, size in sizes.items() if size == (dim, num_layers)), None)


def read_architecture(path: Path) -> WanArchitecture:
    """Read a `config.json` in the names of the original Wan release, or in those of diffusers.

    Raises ConfigError naming the file if it is absent, is no JSON object, lacks a size, or describes
    a model that is not text-to-video.
    """
    try:
        values = json.loads(path.read_text())
        read = _from_diffusers if values.get("_class_name") == DIFFUSERS_CLASS else _from_original
        return read(values)
    except ConfigError as reason:
        raise ConfigError(f"{path}: {reason}") from None
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; it must describe the transformer's sizes") from None
    except KeyError as missing:
        raise ConfigError(
            f"{path} lacks {missing}; expected the names of the original Wan config, or of diffusers' "
            f"{DIFFUSERS_CLASS}"
        ) from None
    except (ValueError, TypeError, AttributeError) as reason:
        raise ConfigError(f"{path} is not a JSON object of sizes: {reason}") from None


def _from_original(values: dict[str, Any]) -> WanArchitecture:
    kind = values.get("model_type", "t2v")
    if kind != "t2v":
        raise ConfigError(f"model_type is '{kind}'; only text-to-video models (t2v) can be used")
    return WanArchitecture(
        dim=values["dim"],
        num_heads=values["num_heads"],
        num_layers=values["num_layers"],
        ffn_dim=values["ffn_dim"],
        freq_dim=values["freq_dim"],
        text_dim=values.get("text_dim", 4096),  # the released configs leave it out
        text_len=values["text_len"],
        in_channels=values["in_dim"],
        out_channels=values["out_dim"],
        patch=tuple(values.get("patch_size", (1, 2, 2))),
        eps=values["eps"],
    )


def _from_diffusers(values: dict[str, Any]) -> WanArchitecture:
    if values.get("image_dim") is not None or values.get("added_kv_proj_dim") is not None:
        raise ConfigError("the transformer takes an image (image_dim); only text-to-video models can be used")
    return WanArchitecture(
        dim=values["num_attention_heads"] * values["attention_head_dim"],
        num_heads=values["num_attention_heads"],
        num_layers=values["num_layers"],
        ffn_dim=values["ffn_dim"],
        freq_dim=values["freq_dim"],
        text_dim=values["text_dim"],
        text_len=512,  # diffusers leaves padding to its caller; all Wan models were trained with 512
        in_channels=values["in_channels"],
        out_channels=values["out_channels"],
        patch=tuple(values["patch_size"]),
        eps=values["eps"],
    )


def write_architecture(architecture: WanArchitecture, path: Path) -> None:
    """Write `config.json` so that `read_architecture` returns an equal value."""
    values = {
        "model_type": "t2v",
        "dim": architecture.dim,
        "num_heads": architecture.num_heads,
        "num_layers": architecture.num_layers,
        "ffn_dim": architecture.ffn_dim,
        "freq_dim": architecture.freq_dim,
        "text_dim": architecture.text_dim,
        "text_len": architecture.text_len,
        "in_dim": architecture.in_channels,
        "out_dim": architecture.out_channels,
        "patch_size": list(architecture.patch),
        "eps": architecture.eps,
    }
    path.write_text(json.dumps(values, indent=2) + "\n")
