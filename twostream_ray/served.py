"""The registered model as an MLflow pyfunc (models from code): raw videos in, top-k classes of each data set out."""

import base64
import binascii
import contextlib
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from twostream_ray.inference import Classifier, HeadPrediction

DEFAULT_TOP_K = 5
_BASE64_BEGINS = re.compile(rb"[A-Za-z0-9+/]{16}")


class ServedClassifier(PythonModel):
    """A `Classifier` behind MLflow's interface."""

    classifier: "Classifier"

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from model.safetensors and model.json.

        `mlflow.pyfunc.load_model(uri, model_config={"device": "cuda", "max_seconds": 60})` moves it, and refuses longer
        videos; max_frames and max_bytes bound the same.
        """
        # Imported late: MLflow puts the package's code, next to this file, on the path when it loads the model.
        from twostream_ray.data.video.limits import VideoLimits
        from twostream_ray.inference import Classifier

        folder, values = Path(context.artifacts["settings"]).parent, context.model_config
        # Versions that were registered before there were limits have none of them.
        named = {field.name: values[field.name] for field in fields(VideoLimits) if field.name in values}
        self.classifier = Classifier.load(folder, device=values["device"], limits=VideoLimits(**named))

    # The hint keeps MLflow from checking elements against one type: a column may hold paths, URIs and bytes.
    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Top-k classes of each video, in the order given; a video that cannot be used has an `error` and no heads.

        Args:
            model_input: one column of raw videos, each a path, a URI, or a file's bytes; MLflow makes it of a list or
                an array. JSON over HTTP carries bytes, base64 encoded.
            params: `top_k`, how many classes; `head`, the one data set to answer for, "" for all; `protocol`, which
                views of a video are scored: validation, fast, paper_2014, fusion_2016, st_resnet_2016 or tsn.

        Returns:
            For each video {"video", "heads", "error" (or None)}; each of its heads, one for every data set that the
            model was trained on, {"name" ("" of a single one), "classes" (best first), "probabilities" in [0, 1] and
            "logits" (as many)}.
        """
        values = params or {}
        videos = [_video(value) for value in model_input.iloc[:, 0]]
        top_k, head = int(values.get("top_k", DEFAULT_TOP_K)), str(values.get("head", "")) or None
        # Versions of the registry that were made before it have no such parameter in their signature.
        protocol = str(values.get("protocol", "")) or None
        predictions = self.classifier.predict(videos, top_k=top_k, head=head, protocol=protocol)
        return [
            {
                "video": prediction.video,
                "heads": [_best(answer) for answer in prediction.heads],
                "error": prediction.error,
            }
            for prediction in predictions
        ]


def _best(answer: "HeadPrediction") -> dict[str, Any]:
    """The best classes of a data set, with probabilities and logits."""
    logits = dict(zip(answer.classes, answer.logits, strict=True))
    return {
        "name": answer.name,
        "classes": [name for name, _ in answer.top],
        "probabilities": [probability for _, probability in answer.top],
        "logits": [logits[name] for name, _ in answer.top],
    }


def _video(value: object) -> str | Path | bytes:
    if isinstance(value, (str, Path)):
        return value
    if not isinstance(value, bytes):
        raise TypeError(f"a video is a path, a URI or bytes, got {type(value).__name__}")
    # MLflow decodes the base64 of `dataframe_split` requests, but not of `inputs`. A video file is not base64 to its
    # end, in any container, so there is no doubt which is which.
    if _BASE64_BEGINS.match(value):
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(value.replace(b"\n", b""), validate=True)
    return value


set_model(ServedClassifier())
