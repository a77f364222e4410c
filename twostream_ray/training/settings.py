"""Settings of training: losses, learning rate, optimiser (Feichtenhofer et al. 2016, sec. 4).

Free of torch, which takes seconds to import, so that the command line can import them cheaply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from twostream_ray.errors import ConfigError
from twostream_ray.settings.bounds import require_within

Precision = Literal["float32", "bfloat16"]
Optimiser = Literal["sgd", "adamw"]
Schedule = Literal["steps", "cosine", "constant"]
ClassWeights = Literal["none", "balanced"]
OnNonfinite = Literal["stop", "skip"]
Auto = Literal["auto"]
"""Chosen for the worker's device by `training.distributed.resolved`."""

CHOSEN_BY_DEVICE = ("precision", "channels_last", "compile")
"""The settings that may be `auto`."""

_CHOICES = {
    "optimiser": get_args(Optimiser),
    "schedule": get_args(Schedule),
    "precision": ("auto", *get_args(Precision)),
    "class_weights": get_args(ClassWeights),
    "on_nonfinite": get_args(OnNonfinite),
}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Stochastic gradient descent, or AdamW, over the sum of the towers' losses."""

    epochs: int = 30
    """Passes over the training split. May be increased for an existing run, finished or not: it
    continues from its last checkpoint."""

    global_batch: int = 96
    """Clips per step over all workers together, so that the learning rate need not change with their number."""

    optimiser: Optimiser = "sgd"
    """sgd: with momentum, as in the papers; adamw (Loshchilov and Hutter 2019): as used for today's image networks,
    with a tenth of SGD's learning rate or less, and a weight_decay of 0.01 to 0.1."""

    learning_rate: float = 1e-3
    """Peak learning rate of weights; with sgd that of biases is twice as high (official code)."""

    momentum: float = 0.9
    """SGD momentum; not used by adamw, whose betas are 0.9 and 0.999."""

    weight_decay: float = 5e-4
    """Weight decay: with sgd an L2 penalty, with adamw decoupled from the gradient. Biases, norms,
    learned scales, position embeddings and class tokens have none."""

    layer_decay: float | None = None
    """Layer-wise learning rate decay, in (0, 1]: a tower's layer with n layers of weights above it has this to the
    power n of the learning rate; classifiers, fusions and temporal layers have all of it. A stage of a convolutional
    network of timm counts as one layer, and so does a transformer's block. For pretrained towers, 0.6 to 0.9. None by
    default: one rate for all layers."""

    schedule: Schedule = "steps"
    """steps: divided by 10 at each of step_epochs; cosine: to zero over the epochs; constant."""

    step_epochs: tuple[int, ...] = (20, 26)
    """Epochs (from 0) at which the schedule `steps` divides the learning rate by 10."""

    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""

    clip_gradient_norm: float | None = None
    """Maximum norm of the gradient (gradient clipping); none by default."""

    temporal_loss_weight: float = 1.0
    """Weight of the temporal tower's loss in the sum; the other tower's is 1."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 computes layers in 16 bits and keeps weights, losses and moments in 32. auto: bfloat16 on GPUs that
    have it, float32 elsewhere."""

    channels_last: bool | Auto = "auto"
    """Memory format of maps: channels innermost (torch.channels_last), as tensor cores read them. auto: on GPUs."""

    compile: bool | Auto = "auto"
    """Compile the network with torch.compile: a minute before the first step, faster steps after; needs a C compiler
    on every node. auto: on GPUs, where there is one."""

    label_smoothing: float = 0.0
    """Label smoothing: share of a label's weight spread evenly over the classes of its data set, in [0, 1)."""

    mixup_alpha: float | None = None
    """alpha of mixup (Zhang et al. 2018): every sample is combined with another clip of its lane in the same step, RGB
    and flow alike, its own share drawn from Beta(alpha, alpha), and learns both labels by their shares. 0.2 mixes
    little, 1 draws shares uniformly; wants training.global_batch to be at least twice data.lanes. None: no mixing."""

    class_weights: ClassWeights = "none"
    """balanced: a clip's loss counts by how rare its class is in the training split, 1 on average."""

    average_decay: float | None = None
    """Decay per step of the exponential moving average of the weights, in (0, 1): validated, kept and registered
    instead of the weights. None by default."""

    patience_epochs: int | None = None
    """Early stopping: end training after this many epochs without an improvement of val_top1; needs validation. None:
    never."""

    on_nonfinite: OnNonfinite = "stop"
    """What to do when a step's loss is NaN or infinite. stop: fail, naming its clips; skip: leave the step out, count
    it in skipped_steps and continue; looking before each update costs GPUs a little time."""

    micro_batches: int = 1
    """Gradient accumulation: parts that a worker splits its share of a step into; less memory, the same gradients."""

    activation_checkpointing: bool = False
    """Keep only the towers' maps at pooling layers and recompute the others in the backward pass: less memory, about a
    third more computation."""

    compress_gradients: bool = False
    """All-reduce gradients in bfloat16: half the bytes, 8 bits of precision."""

    @property
    def num_moments(self) -> int:
        """Optimiser state values per trainable parameter: SGD's momentum, or AdamW's two moments."""
        if self.optimiser == "adamw":
            return 2
        return 1 if self.momentum else 0

    @property
    def bias_lr_factor(self) -> float:
        """Learning rate of biases relative to weights: 2 with sgd (official code of both 2016 papers)."""
        return 2.0 if self.optimiser == "sgd" else 1.0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"training.{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name in ("channels_last", "compile"):
            if (value := getattr(self, name)) != "auto" and not isinstance(value, bool):
                raise ConfigError(f"training.{name} must be auto, true or false, got {value!r}")
        require_within(
            self,
            "training.",
            epochs="[1, 1_000_000]",
            global_batch="[1, 1_000_000]",
            learning_rate="(0, 1_000]",
            momentum="[0, 1)",
            weight_decay="[0, 1_000]",
            layer_decay="(0, 1]",
            step_epochs="[0, 1_000_000]",
            warmup_epochs="[0, 1_000_000]",
            clip_gradient_norm="(0, 1e9]",
            temporal_loss_weight="[0, 1e6]",
            label_smoothing="[0, 1)",
            mixup_alpha="(0, 1_000]",
            average_decay="(0, 1)",
            patience_epochs="[1, 1_000_000]",
            micro_batches="[1, 1_000_000]",
        )
