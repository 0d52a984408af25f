"""Model classes that packages list themselves, each at sizes that are found by what its constructor calls them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

Maker = Callable[[], tuple[nn.Module, Any]]
Makers = dict[str, Maker]

# More than that is no small configuration.
_MOST_PARAMETERS = 6e6


class NoSmallConfigurationError(ValueError):
    """The sizes that are known by name do not make this model small, or nothing that it takes is known."""


def first_that_runs(build: Callable[[], nn.Module], samples: Iterable[Callable[[], Any]]) -> tuple[nn.Module, Any]:
    """The model, and the first of the samples that it takes; the last one where it takes none."""
    from fxprune.capture.samples import Sample

    model, sample = build().eval(), None
    for make in samples:
        sample = make()
        try:
            with torch.no_grad():
                Sample.from_input(sample).call(model)
        except Exception:  # whatever it raises is its refusal
            continue
        break
    return model, sample


def check_small(build: Callable[[], nn.Module]) -> None:
    """Build on the meta device, and count.

    Raises:
        NoSmallConfigurationError: it has too many parameters.
    """
    try:
        with torch.device("meta"):
            number = sum(parameter.numel() for parameter in build().parameters())
    except (NotImplementedError, RuntimeError):  # its constructor computes with values
        return
    if number > _MOST_PARAMETERS:
        raise NoSmallConfigurationError(f"{number / 1e6:.1f} M parameters at sizes known by name")


def images(build: Callable[[], nn.Module], *sizes: int, channels: int = 3) -> Maker:
    """The model with the first of the image sizes that it takes."""
    samples = [partial(torch.randn, 2, channels, size, size) for size in sizes]
    return lambda: first_that_runs(build, samples)


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    """The modules of a package that can be imported."""
    for found in pkgutil.iter_modules(package.__path__):
        try:
            yield importlib.import_module(f"{package.__name__}.{found.name}")
        except ImportError:  # it asks for a package of its own
            continue


# -- transformers ------------------------------------------------------------------------------------------------------

_IMAGE, _TOKENS, _VOCABULARY = 64, 12, 96
# What the fields of configurations are called, and values for a small one; the first that fits.
_FIELDS: tuple[tuple[str, int], ...] = (
    (r"vocab_size", _VOCABULARY), (r"type_vocab_size|num_labels", 2),
    (r"(.*_)?moe_intermediate_size", 32), (r"(.*_)?(intermediate_size|ffn_dim|mlp_dim|d_ff|d_inner)", 128),
    (r"(.*_)?(num_hidden_layers|num_layers|n_layers?|depth|num_decoder_layers|num_encoder_layers)", 2),
    (r"(en|de)coder_layers", 1), (r"(.*_)?(num_key_value_heads|num_kv_heads)", 2),
    (r"(.*_)?(num_attention_heads|attention_heads|n_heads?|num_heads)", 4),
    (r"(.*_)?(hidden_size|d_model|n_embd|hidden_dim|embedding_size|embed_dim|projection_dim|output_dim)", 64),
    (r"(.*_)?(head_dim|d_kv)", 16), (r"(q|kv)_lora_rank", 16), (r"qk_rope_head_dim", 8), (r"qk_nope_head_dim", 8),
    (r"(.*_)?(max_position_embeddings|n_positions)", 64), (r"max_(source|target)_positions", 20),
    (r"image_size", _IMAGE), (r"(num_experts|num_local_experts|n_routed_experts)", 4), (r"num_experts_per_tok", 2),
    (r"n_group|topk_group|n_shared_experts|first_k_dense_replace", 1), (r"num_queries", 8), (r"num_mel_bins", 8),
    (r"num_conv_pos_embeddings", 16), (r"num_conv_pos_embedding_groups", 4), (r"(.*_)?state_size|mamba_d_state", 8),
    (r"sliding_window", 8), (r"chunk_size", 8), (r"num_frames", 2), (r"codebook_(size|dim)", 16),
)  # fmt: skip
_LISTS = re.compile(r".*(hidden_sizes|embed_dims|conv_dim|channels|tdnn_dim|dims)")


def _small_value(name: str, default: Any, number: int) -> Any:
    """A small value for a field, or its default."""
    if isinstance(default, (list, tuple)) and default and all(type(v) is int for v in default):
        if name == "depths":
            return [min(v, 2) for v in default]
        return [max(v // 4, 8) if v > 8 else v for v in default] if _LISTS.fullmatch(name) else default
    if name.endswith(("token_id", "token_index")):
        return number if isinstance(default, int) and default >= _VOCABULARY else default
    known = next((value for pattern, value in _FIELDS if re.fullmatch(pattern, name)), None)
    return known if known is not None and (default is None or type(default) is int) else default


def _small_configuration(cls: type[Any], left_out: Iterable[str]) -> Any:
    parameters = inspect.signature(cls.__init__).parameters.values()
    given = {}
    for number, parameter in enumerate(p for p in parameters if p.default is not p.empty):
        value = _small_value(parameter.name, parameter.default, number)
        if value is not parameter.default and parameter.name not in left_out:
            given[parameter.name] = value
    inner = getattr(cls, "sub_configs", {})
    if inner:
        whole = cls()
        kinds = {name: type(part) for name in inner if (part := getattr(whole, name, None)) is not None}
        given |= {name: _small_configuration(kind, left_out) for name, kind in kinds.items() if kind is not dict}
    return cls(**given)


def _without_cache(config: Any) -> Any:
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    return config


def _transformers_samples(model: nn.Module, config: Any) -> list[Callable[[], Any]]:
    vision = next((c for c in (config, getattr(config, "vision_config", None)) if hasattr(c, "image_size")), None)
    size = getattr(vision, "image_size", _IMAGE)
    size = size if isinstance(size, int) else size[0] if isinstance(size, (list, tuple)) else _IMAGE
    bins = next((getattr(config, n) for n in ("num_mel_bins", "feature_size", "input_size") if hasattr(config, n)), 8)
    channels = getattr(vision, "num_channels", 3)
    known: dict[str, Callable[[], Any]] = {
        "input_ids": lambda: torch.randint(3, _VOCABULARY - 30, (2, _TOKENS)),
        "decoder_input_ids": lambda: torch.randint(3, _VOCABULARY - 30, (2, _TOKENS // 2)),
        "pixel_values": lambda: torch.randn(2, channels, size, size),
        "pixel_values_videos": lambda: torch.randn(2, 2, channels, size, size),
        "input_values": lambda: torch.randn(2, 3200),
        "input_features": lambda: torch.randn(2, bins, 40),
        "bbox": lambda: torch.randint(0, 50, (2, _TOKENS, 4)),
        "past_values": lambda: torch.randn(2, 32, 3),
        "pixel_mask": lambda: torch.ones(2, size, size, dtype=torch.long),
    }
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    needed = [n for n, p in accepted.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    sets = [[main, *needed], [main, *needed, "decoder_input_ids"], ["input_ids", "pixel_values"]]
    sets += [["input_ids", "pixel_values", "bbox"], ["input_ids"], ["pixel_values"], ["input_values"]]
    sets += [["input_features"], ["input_features", "decoder_input_ids"], ["pixel_values", "pixel_mask"]]
    sets = [list(dict.fromkeys(names)) for names in sets]
    return [
        partial(lambda names: {name: known[name]() for name in names}, names)
        for names in sets
        if all(name in known and name in accepted for name in names)
    ]


def _transformers_maker(kind: str, class_name: str) -> Maker:
    def make() -> tuple[nn.Module, Any]:
        import transformers

        cls = getattr(transformers, class_name)
        found: tuple[nn.Module, Any] | None = None
        problem: Exception | None = None
        for left_out in ((), ("head_dim",), ("sliding_window", "head_dim", "num_key_value_heads")):
            try:
                config = _without_cache(_small_configuration(transformers.CONFIG_MAPPING[kind], left_out))
                check_small(lambda config=config: cls(config))
                model = cls(config).eval()
                found = first_that_runs(lambda model=model: model, _transformers_samples(model, config))
                with torch.no_grad():
                    model(**(found[1] or {}))
                return found
            except Exception as error:  # these sizes do not fit each other
                problem = problem or error
        assert problem is not None
        raise problem

    return make


def transformers_makers() -> Makers:
    """The base class of each kind of model, in an order that is drawn, so that a part of it tells of all."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    named = {kind: name for kind, name in MODEL_MAPPING_NAMES.items() if isinstance(name, str)}
    order = sorted(dict.fromkeys(named.values()))
    random.Random(0).shuffle(order)
    kinds = {name: kind for kind, name in reversed(named.items())}
    return {name: _transformers_maker(kinds[name], name) for name in order}


# -- images ------------------------------------------------------------------------------------------------------------


def timm_makers() -> Makers:
    """timm's models for tests, and the smallest of each family with images of 64 pixels where it takes them."""
    import timm

    from benchmarks.networks import model_names

    def maker(name: str) -> Maker:
        def build(**options: Any) -> nn.Module:
            return timm.create_model(name, pretrained=False, num_classes=10, **options)

        def make() -> tuple[nn.Module, Any]:
            for options in ({"img_size": 64}, {}):
                try:
                    check_small(partial(build, **options))
                    return images(partial(build, **options), 64, 96, 224, 256)()
                except TypeError:  # no such option
                    continue
            raise NoSmallConfigurationError(name)

        return make

    return {name: maker(name) for name in [*timm.list_models("test_*"), *model_names("timm", families=True)]}


def torchvision_makers() -> Makers:
    """The first model of each of torchvision's modules."""
    from torchvision import models

    def maker(name: str) -> Maker:
        def build() -> nn.Module:
            return models.get_model(name, weights=None, **({} if "segm" in module else {"num_classes": 10}))

        module = models.get_model_builder(name).__module__
        clip = partial(torch.randn, 1, 3, 8, 64, 64)
        sizes: list[Callable[[], Any]] = [partial(torch.randn, 2, 3, size, size) for size in (64, 128, 224)]
        return lambda: first_that_runs(build, [clip] if "video" in module else sizes)

    named = {models.get_model_builder(name).__module__: name for name in reversed(models.list_models())}
    return {name: maker(name) for module, name in reversed(named.items()) if "flow" not in module}


def ultralytics_makers() -> Makers:
    """Each of the descriptions of networks that ultralytics has, at its smallest scale."""
    import ultralytics
    from ultralytics.nn import tasks

    kinds = {"-cls": "ClassificationModel", "-seg": "SegmentationModel", "-pose": "PoseModel", "-obb": "OBBModel"}
    kinds |= {"rtdetr": "RTDETRDetectionModel", "-sem": "SemanticSegmentationModel", "-depth": "DepthModel"}

    def maker(path: Path) -> Maker:
        cls = next((getattr(tasks, kind) for part, kind in kinds.items() if part in path.stem), tasks.DetectionModel)

        def build() -> nn.Module:
            description = tasks.yaml_model_load(str(path))
            description["scale"] = next(iter(description.get("scales", "")), "")
            return cls(description, verbose=False)

        return images(build, 64)

    paths = sorted(Path(ultralytics.__path__[0]).glob("cfg/models/**/*.yaml"))
    return {path.stem: maker(path) for path in paths if "yoloe" not in path.stem and "world" not in path.stem}


# -- classes with sizes that are called alike --------------------------------------------------------------------------

# Recordings that a network may be made for: numbers of electrodes and of steps, and steps a second.
_SIGNALS = ((8, 256, 64), (16, 1000, 250), (1, 3000, 100), (16, 2000, 2000))
_ELECTRODES = "Fz C3 Cz C4 Pz PO7 Oz PO8 F3 F4 P3 P4 T7 T8 O1 O2".split()


def braindecode_makers() -> Makers:
    """Networks for recordings of electrodes, for the first kind that each can be made for."""
    models = importlib.import_module("braindecode.models")

    def places(number: int) -> Any:
        mne = importlib.import_module("mne")
        about = mne.create_info(_ELECTRODES[:number], 100.0, "eeg")
        about.set_montage("standard_1020")
        return about["chs"]

    def made(cls: type[nn.Module], channels: int, steps: int, rate: int) -> tuple[nn.Module, Any]:
        known = inspect.signature(cls.__init__).parameters
        given: dict[str, Any] = {"n_chans": channels, "n_outputs": 3, "n_times": steps, "sfreq": rate}

        def build() -> nn.Module:
            try:
                return cls(**{name: value for name, value in given.items() if name in known})
            except (TypeError, ValueError):  # it asks where the electrodes are
                return cls(**{n: v for n, v in {**given, "chs_info": places(channels)}.items() if n in known})

        check_small(build)
        network, sample = build().eval(), torch.randn(2, channels, steps)
        with torch.no_grad():
            network(sample)
        return network, sample

    def maker(cls: type[nn.Module]) -> Maker:
        def make() -> tuple[nn.Module, Any]:
            problem: Exception | None = None
            for signals in _SIGNALS:
                try:
                    return made(cls, *signals)
                except Exception as error:  # it is made for other recordings
                    problem = problem or error
            assert problem is not None
            raise problem

        return make

    return {name: maker(getattr(models, name)) for name in models.__all__ if inspect.isclass(getattr(models, name))}


# What constructors of image networks call their sizes, and values for a small one.
_SMALL = {
    "embed_dim": 24, "dim": 24, "num_feat": 16, "nf": 16, "n_feats": 16, "num_block": 2, "nb": 2, "n_feat": 16,
    "num_conv": 4, "n_resblocks": 2, "n_resgroups": 2, "channels": 3, "image_size": 32, "num_blocks": None,
    "feature_channels": 16, "n_blocks": 2, "num_grow_ch": 8, "hidden_dim": 32, "width": 16, "upscale": 2,
}  # fmt: skip


def spandrel_makers() -> Makers:
    """The class of each architecture of spandrel."""
    package = importlib.import_module("spandrel.architectures")

    def maker(cls: type[nn.Module]) -> Maker:
        parameters = inspect.signature(cls.__init__).parameters

        def build(given: Mapping[str, Any]) -> nn.Module:
            return cls(**given)

        def make() -> tuple[nn.Module, Any]:
            small = {
                n: v for n, v in _SMALL.items() if n in parameters and v and type(parameters[n].default) in (int, type)
            }
            problem: Exception | None = None
            for given in (small, {}):
                try:
                    check_small(partial(build, given))
                    return images(partial(build, given), 32, 64, 128)()
                except Exception as error:  # these sizes do not fit each other
                    problem = error
            assert problem is not None
            raise problem

        return make

    found: Makers = {}
    for module in modules_of(package):
        named = module.__name__.rpartition(".")[2]
        classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, nn.Module)]
        if classes:
            found[named] = maker(classes[-1])
    return found


def pretrainedmodels_makers() -> Makers:
    """Networks of the package pretrainedmodels, without weights."""
    package = importlib.import_module("pretrainedmodels")

    def maker(name: str) -> Maker:
        def build() -> nn.Module:
            return package.__dict__[name](num_classes=10, pretrained=None)

        def make() -> tuple[nn.Module, Any]:
            check_small(build)
            return images(build, 64, 128, 224)()

        return make

    return {name: maker(name) for name in package.model_names}
