"""Model card (Mitchell et al. 2019) of a registered version, used as its description in the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twostream_ray.tracking.lineage import GIT_COMMIT, JOB_ID, MANIFEST
from twostream_ray.tracking.measurement import Measurement

_MOST_CLASSES = 20


def model_card(
    name: str,
    *,
    summary: str,
    measurement: Measurement,
    protocol: str,
    classes: Sequence[str],
    flow_contract: Mapping[str, object],
    lineage: Mapping[str, str],
) -> str:
    """The model card as Markdown, about one screen.

    Args:
        name: name of the registered model.
        summary: the network in a sentence.
        measurement: its metrics.
        protocol: how they were computed: views, crops, averaging.
        classes: class names in the order of the network's outputs.
        flow_contract: settings of the network's flow input.
        lineage: tags from `lineage_tags`.
    """
    scores = [f"{metric.replace('_', ' ')} {value:.2%}" for metric, value in measurement.metrics.items()]
    more = f" … {len(classes)} in all" if len(classes) > _MOST_CLASSES else ""
    trained = [
        f"Trained on manifest `{lineage.get(MANIFEST, 'unknown')}`",
        f"code at git commit `{lineage.get(GIT_COMMIT, 'unknown')}`",
        f"Ray job `{lineage.get(JOB_ID, 'none')}`",
    ]
    return "\n".join(
        [
            summary,
            "",
            # MLflow's page sets tables without space between columns.
            f"**Scores.** Split `{measurement.split}`, {measurement.n_of_n()} clips: {', '.join(scores)}.",
            "",
            f"**Protocol.** {protocol}; manifest `{measurement.manifest_hash}`.",
            "",
            "**Input.** Raw videos: paths, URIs or bytes; over HTTP base64 bytes. Decoding, optical flow and test "
            "views happen inside.",
            "",
            "**Flow contract.** " + ", ".join(f"{key} {value}" for key, value in flow_contract.items()),
            "",
            f"**Classes ({len(classes)}).** " + ", ".join(classes[:_MOST_CLASSES]) + more,
            "",
            f"**Lineage.** {', '.join(trained)}.",
            "",
            "```python",
            "import mlflow",
            f'model = mlflow.pyfunc.load_model("models:/{name}@champion")',
            'model.predict(["video.mp4"], params={"top_k": 5})',
            "```",
        ]
    )
