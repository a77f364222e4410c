"""Networks and training budgets of the papers' comparisons on synthetic videos, with VGG-like and modern towers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.sources.synthetic import Group, SyntheticConfig
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.settings import Towers
from twostream_ray.training.settings import TrainingConfig

SIZE_PX = 96
"""Height and width of the videos."""
_ORDER_STRIDE_FRAMES = 16
_SMALL = TowerConfig(backbone="vgg_small", width=16, dropout=0.0)
_ONE_FRAME = SamplingConfig(num_snippets=1, min_stride_frames=1, max_stride_frames=1, test_times=1)
_WHOLE_CLIP = SamplingConfig(
    num_snippets=4, min_stride_frames=_ORDER_STRIDE_FRAMES, max_stride_frames=_ORDER_STRIDE_FRAMES, test_times=1
)
_ADAMW = TrainingConfig(
    epochs=5,
    global_batch=32,
    learning_rate=2e-3,
    schedule="cosine",
    warmup_epochs=1.0,
    optimiser="adamw",
    weight_decay=0.05,
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Networks to train on the same videos with the same budget."""

    clips: SyntheticConfig
    """The videos."""
    sampling: SamplingConfig
    """How snippets are sampled from a clip."""
    training: TrainingConfig
    """The budget."""
    networks: dict[str, ModelConfig]
    """Networks by their names in the table."""


def comparisons(towers: Towers = "papers") -> dict[Group, Comparison]:
    """The comparisons by group of videos."""
    return _papers() if towers == "papers" else _modern()


def _papers() -> dict[Group, Comparison]:
    """Small VGG towers.

    `binding`: streams alone and averaged, every method at relu3, every layer, one tower or two above the fusion
    (Feichtenhofer et al. 2016, tables 1 and 2). `order`: what happens to time after the fusion (table 4).
    """
    late = ModelConfig(architecture="late", spatial=_SMALL, temporal=_SMALL)

    def fused(*layers: str, method: str = "conv", time: str = "pool2d", keep: bool = True) -> ModelConfig:
        fusion = FusionConfig(method=method, layers=layers, temporal=time)  # type: ignore[arg-type]
        return ModelConfig(spatial=_SMALL, temporal=_SMALL, fusion=fusion, keep_temporal_tower=keep)

    return {
        "binding": Comparison(
            clips=SyntheticConfig(group="binding", val_clips=0, size_px=SIZE_PX),
            sampling=_ONE_FRAME,
            training=TrainingConfig(epochs=5, global_batch=32, learning_rate=0.1, schedule="cosine", warmup_epochs=1.0),
            networks={
                "appearance alone": replace(late, streams="spatial"),
                "motion alone": replace(late, streams="temporal"),
                "late: scores averaged": late,
                "sum at relu3": fused("relu3", method="sum"),
                "max at relu3": fused("relu3", method="max"),
                "concat at relu3": fused("relu3", method="concat"),
                "bilinear at relu3": fused("relu3", method="bilinear"),
                "conv at relu3": fused("relu3"),
                "conv at relu1": fused("relu1"),
                "conv at relu2": fused("relu2"),
                "conv at relu4": fused("relu4"),
                "conv at relu2 and relu4": fused("relu2", "relu4"),
                "conv at relu1, one tower above": fused("relu1", keep=False),
                "conv at relu2, one tower above": fused("relu2", keep=False),
                "conv at relu3, one tower above": fused("relu3", keep=False),
            },
        ),
        "order": Comparison(
            clips=SyntheticConfig(group="order", train_clips=640, val_clips=0, size_px=SIZE_PX),
            sampling=_WHOLE_CLIP,
            # At 0.1 one seed of three stays at chance, also in twice the epochs.
            training=TrainingConfig(
                epochs=4, global_batch=16, learning_rate=0.03, schedule="cosine", warmup_epochs=1.0
            ),
            networks={
                "late: scores averaged": late,
                "conv at relu4, 2D pooling and averaging": fused("relu4"),
                "conv at relu4, 3D pooling": fused("relu4", time="pool3d"),
                "conv at relu4, 3D convolution and 3D pooling": fused("relu4", time="conv3d"),
            },
        ),
    }


def _modern() -> dict[Group, Comparison]:
    """A small ConvNeXt and a small vision transformer, late against fused: the findings do not depend on VGG."""
    kinds = {
        "ConvNeXt": (TowerConfig(backbone="timm:test_convnext", dropout=0.0), "stages_1", "stages_2"),
        "ViT": (TowerConfig(backbone="timm:test_vit", dropout=0.0), "blocks_2", "blocks_3"),
    }
    papers = _papers()
    binding, order = {}, {}
    for kind, (tower, layer, later_layer) in kinds.items():
        late = ModelConfig(architecture="late", spatial=tower, temporal=tower)
        fusion = FusionConfig(method="conv", layers=(layer,), temporal="pool2d", initialisation="identity")
        over_time = replace(fusion, layers=(later_layer,), temporal="conv3d")
        binding[f"{kind}, late: scores averaged"] = late
        binding[f"{kind}, conv at {layer}"] = ModelConfig(spatial=tower, temporal=tower, fusion=fusion)
        order[f"{kind}, late: scores averaged"] = late
        order[f"{kind}, conv at {later_layer}, 3D convolution and 3D pooling"] = ModelConfig(
            spatial=tower, temporal=tower, fusion=over_time
        )
    return {
        "binding": replace(papers["binding"], training=_ADAMW, networks=binding),
        "order": replace(papers["order"], training=replace(_ADAMW, epochs=3, global_batch=16), networks=order),
    }
