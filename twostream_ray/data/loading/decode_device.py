"""GPU decoding: the JPEG flow fields of a batch in a few batched calls of torchcodec (nvJPEG).

Samples are bit-identical to those of `decode_cpu`: cropping and resizing use integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostream_ray.data import flow, sampling, snippets
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decode_cpu import decode_flow
from twostream_ray.data.loading.integer_resize import resized, sampling_tables
from twostream_ray.data.snippets import EncodedFlow
from twostream_ray.data.transforms import Crop
from twostream_ray.data.views import View
from twostream_ray.errors import DecodeError
from twostream_ray.redaction import one_line

_FIELDS_PER_CALL = 1024
"""About 0.2 GB of decoded fields."""
_FIELDS_AT_ONCE = 128


def device_decoder_fault(device: torch.device) -> str | None:
    """Why flow cannot be decoded on a device; None if torchcodec decodes it exactly as the CPU does, and for a CPU."""
    if device.type == "cpu":
        return None
    return _torchcodec_fault(device)


def _torchcodec_fault(device: torch.device) -> str | None:
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchcodec cannot be imported ({one_line(error)})"
    field = np.random.default_rng(0).integers(0, 256, (2, 32, 48), np.uint8)
    content = flow.encode_levels(field[0], field[1], FlowContract())
    try:
        decoded = decode_jpeg([torch.frombuffer(bytearray(content), dtype=torch.uint8)], mode="GRAY", device=device)
    except RuntimeError as error:
        return (
            f"torchcodec has no JPEG decoder on {device} ({one_line(error)}): check that the container has the driver "
            "capability `video`"
        )
    if not np.array_equal(decoded[0].cpu().numpy().reshape(field.shape), flow.decode_field(content)):
        return f"the JPEG decoder of {device} rounds differently from the CPU's"
    return None


def decode_batch(encoded: EncodedFlow, device: torch.device) -> Tensor:
    """Decode the flow stacks of a batch on the device: (N, T, 2L, size, size) uint8, quantised.

    On a CPU, threads run `decode_cpu`: tensor operations are twenty times slower there.

    Raises:
        DecodeError: a clip has no flow, or a field is damaged; names clip, shard and row.
    """
    out = torch.empty(encoded.shape, dtype=torch.uint8, device=device)
    if device.type == "cpu":
        _decode_on_cpu(encoded, out)
    else:
        decode_with_tensors(encoded, out)
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _CroppedClip:
    """The views of a clip that share one crop: in training and validation, all of them."""

    number: int
    """Index of the clip in its batch."""
    clip: EncodedClip
    crop: Crop
    views: Mapping[int, View]
    """Index of the sample in the batch -> its view."""
    fields: Sequence[int]
    """Indices of the flow fields that the views need, ascending."""


def _cropped_clips(encoded: EncodedFlow) -> Iterator[_CroppedClip]:
    sample = 0
    for number, (clip, views) in enumerate(encoded.clips):
        by_crop: dict[Crop, dict[int, View]] = {}
        for view in views:
            by_crop.setdefault(view.crop, {})[sample] = view
            sample += 1
        for crop, of_crop in by_crop.items():
            times = np.concatenate([view.times for view in of_crop.values()])
            fields = snippets.needed_fields(times, config=encoded.config, num_frames=clip.num_frames)
            yield _CroppedClip(number=number, clip=clip, crop=crop, views=of_crop, fields=fields)


def decode_with_tensors(encoded: EncodedFlow, out: Tensor) -> None:
    """Decode the flow stacks of a batch into `out`, (N, T, 2L, size, size) uint8, on its device.

    Raises:
        DecodeError: a clip has no flow, or a field is damaged; names clip, shard and row.
    """
    together: list[_CroppedClip] = []
    for clip in _cropped_clips(encoded):
        together.append(clip)
        if sum(len(clip.fields) for clip in together) >= _FIELDS_PER_CALL:
            _decode_together(encoded, together, out=out)
            together = []
    if together:
        _decode_together(encoded, together, out=out)
    if encoded.config.flow_stack == "bidirectional":
        backward = out[:, :, encoded.config.flow_length :]
        backward.copy_(_negated(backward, encoded.contract))


def _decode_together(encoded: EncodedFlow, clips: Sequence[_CroppedClip], *, out: Tensor) -> None:
    decoded = _decoded(encoded, clips, device=out.device)
    shapes = [(clip.clip.height, clip.clip.width) for clip in clips]
    for shape, same in groupby(sorted(range(len(clips)), key=shapes.__getitem__), key=shapes.__getitem__):
        numbers = list(same)
        planes = torch.stack([field for number in numbers for field in decoded[number]]).view(-1, 2, *shape)
        _stack(encoded, [clips[number] for number in numbers], planes, out=out)


def _stack(encoded: EncodedFlow, clips: Sequence[_CroppedClip], planes: Tensor, *, out: Tensor) -> None:
    """Crop fields (F, 2, H, W) uint8 of equally sized clips, concatenated clip by clip, and write them into `out`."""
    device = out.device
    if encoded.config.flow_mean_subtraction:
        planes = _without_means(planes, encoded.contract)
    lengths = torch.tensor([len(clip.fields) for clip in clips], device=device)

    def repeat_per_field(per_clip: Tensor) -> Tensor:
        return per_clip.to(device).repeat_interleave(lengths, dim=0, output_size=len(planes))

    tables = torch.from_numpy(sampling_tables([clip.crop for clip in clips], size_px=encoded.size_px))
    cropped = resized(planes, repeat_per_field(tables))
    mirrored = torch.tensor([clip.crop.mirrored for clip in clips])
    if mirrored.any():
        x = cropped[:, 0]
        x.copy_(torch.where(repeat_per_field(mirrored)[:, None, None], _negated(x, encoded.contract), x))
    source, target = _stack_positions(encoded, clips)
    stacked = out.view(-1, *cropped.shape[1:])
    stacked.index_copy_(0, target.to(device), cropped.index_select(0, source.to(device)))


def _stack_positions(encoded: EncodedFlow, clips: Sequence[_CroppedClip]) -> tuple[Tensor, Tensor]:
    """Gather and scatter indices: the field at source[i] goes to position target[i] of (N x T x L)."""
    length = encoded.config.num_snippets * encoded.config.flow_length
    source, target, before = [], [], 0
    for clip in clips:
        for sample, view in clip.views.items():
            windows = [
                sampling.field_indices(int(time), config=encoded.config, num_frames=clip.clip.num_frames)
                for time in view.times
            ]
            source.append(before + np.searchsorted(clip.fields, np.concatenate(windows)))
            target.append(sample * length + np.arange(length))
        before += len(clip.fields)
    return torch.from_numpy(np.concatenate(source)), torch.from_numpy(np.concatenate(target))


def _without_means(planes: Tensor, contract: FlowContract) -> Tensor:
    """Subtract the mean vector from each field, (F, 2, H, W) uint8 -> the same."""
    levels = planes.flatten(start_dim=2)
    means = levels.sum(dim=2, dtype=torch.int64).cpu().numpy() / levels.shape[2]
    tables = torch.from_numpy(flow.mean_subtraction_tables(means, contract)).to(planes.device)
    # In parts: gather's indices take eight bytes per pixel.
    parts = zip(tables.split(_FIELDS_AT_ONCE), levels.split(_FIELDS_AT_ONCE), strict=True)
    return torch.cat([table.gather(2, part.long()) for table, part in parts]).view(planes.shape)


def _negated(levels: Tensor, contract: FlowContract) -> Tensor:
    """`flow.negated` for tensors."""
    if contract.coding == "legacy255":
        return 255 - levels
    return torch.where(levels == 0, 255, 256 - levels.int()).to(torch.uint8)


def _decoded(encoded: EncodedFlow, clips: Sequence[_CroppedClip], *, device: torch.device) -> list[list[Tensor]]:
    """Decode the fields that each clip needs in one call; (1, 2H, W) uint8 each."""
    from torchcodec.decoders import decode_jpeg

    contents = []
    for clip in clips:
        if clip.clip.flow is None:
            raise DecodeError(
                f"{encoded.name(clip.number)}: flow requested from a clip that was read without its flow column"
            )
        contents += [clip.clip.flow[index] for index in clip.fields]
    # Copied, because torch warns about read-only memory such as Arrow's; the extra byte because it rejects empty ones.
    together = torch.frombuffer(bytearray().join([*contents, b"\0"]), dtype=torch.uint8)
    sources = together.split([*map(len, contents), 1])[:-1]
    try:
        fields = decode_jpeg(list(sources), mode="GRAY", device=device)
    except RuntimeError as error:
        _refuse_damaged(encoded, clips)
        raise DecodeError(
            f"the JPEG decoder of {device} failed on flow fields that the CPU decodes ({one_line(error)}): set "
            "data.decode_at to worker"
        ) from error
    found = iter(fields)
    by_clip = [[next(found) for _ in clip.fields] for clip in clips]
    for clip, of_clip in zip(clips, by_clip, strict=True):
        for index, field in zip(clip.fields, of_clip, strict=True):
            height, width = field.shape[1:]
            wanted = (2 * clip.clip.height, clip.clip.width)
            if (height, width) != wanted:
                reason = f"expected {wanted[0]} x {wanted[1]} px, got {height} x {width}"
                raise _damaged(encoded, clip, index, reason)
    return by_clip


def _refuse_damaged(encoded: EncodedFlow, clips: Sequence[_CroppedClip]) -> None:
    """Raise for the first damaged field: the batched decoder does not say which one it failed on."""
    for clip in clips:
        for index in clip.fields:
            try:
                flow.decode_field(clip.clip.flow[index])  # type: ignore[index]
            except ValueError as error:
                raise _damaged(encoded, clip, index, str(error)) from error


def _damaged(encoded: EncodedFlow, clip: _CroppedClip, index: int, reason: str) -> DecodeError:
    return DecodeError(
        f"{encoded.name(clip.number)}: flow field {index} of a clip of {clip.clip.num_frames} frames is damaged "
        f"({reason}); ingest again"
    )


def _decode_on_cpu(encoded: EncodedFlow, out: Tensor) -> None:
    stacks: NDArray[np.uint8] = out.numpy()

    def decode(clip: _CroppedClip) -> None:
        for sample, view in clip.views.items():
            try:
                decode_flow(
                    clip.clip,
                    view,
                    config=encoded.config,
                    contract=encoded.contract,
                    out=stacks[sample],
                )
            except DecodeError as error:
                raise DecodeError(f"{encoded.name(clip.number)}: {error}; ingest again") from error

    with ThreadPoolExecutor(encoded.threads, thread_name_prefix="decode-flow") as threads:
        list(threads.map(decode, _cropped_clips(encoded)))
