"""FastAPI application: the routes, their parameters and the exception handlers."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twostream_ray.data.video.isolation import decoder_pool
from twostream_ray.serving.answers import EXAMPLE, ErrorAnswer, ModelAnswer, PredictionAnswer, ReadyAnswer
from twostream_ray.serving.clip_cache import ClipCache
from twostream_ray.serving.current_model import CurrentModel
from twostream_ray.serving.explanations import MOST_MOMENTS, ExplanationAnswer, explain
from twostream_ray.serving.jobs import Job, JobQueue
from twostream_ray.serving.lingering_close import LingeringClose
from twostream_ray.serving.metrics import Metrics
from twostream_ray.serving.page import page_routes
from twostream_ray.serving.predictions import predict
from twostream_ray.serving.refusals import KINDS, Refusal, refusal_of
from twostream_ray.serving.samples import SampleClips
from twostream_ray.serving.settings import ServeConfig
from twostream_ray.serving.uploads import Receiver
from twostream_ray.storage.temporary_folders import temporary_folder

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

VERSION = "1"
"""Of the HTTP interface."""
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "video/mp4": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["video"],
                    "properties": {"video": {"type": "string", "format": "binary"}},
                }
            },
            "application/json": {
                "schema": {"type": "object", "required": ["uri"], "properties": {"uri": {"type": "string"}}},
                "example": {"uri": "s3://bucket/videos/clip.mp4"},
            },
        },
    }
}
"""OpenAPI schema of the request body of routes that take a video."""
REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": ", ".join(kind for kind, of in KINDS.items() if of == status)}
    for status in sorted(set(KINDS.values()) - {404, 405, 499})
}
"""OpenAPI responses of such a route beside 200."""


class Service:
    """State shared by the routes: the served model, decoder processes, job queue, uploads, metrics."""

    def __init__(self, config: ServeConfig) -> None:
        """Prepare; no model is loaded yet."""
        self.config = config
        self.pool = decoder_pool(config.decoders)
        self.current = CurrentModel(config, pool=self.pool)
        self.clips = ClipCache(limit_bytes=config.clip_cache_bytes, seconds=config.clip_cache_seconds)
        self.queue = JobQueue(self.current, self.clips, workers=self.pool.most, limits=config.limits)
        self._folder = temporary_folder()
        self.receiver = Receiver(Path(self._folder.name), limits=config.limits, uris=config.uris)
        self.metrics = Metrics(current=self.current, queue=self.queue, receiver=self.receiver)
        self.is_stopping = False
        self.cut_off = 0
        """Requests aborted by the end of the service."""

    async def answer(self, request: Request, work: Callable[[Job], _Result]) -> _Result:
        """Receive a request's video and process it in a worker thread.

        Raises:
            Refusal: any error, as an HTTP response.
        """
        if self.is_stopping:
            raise self._stopping()
        # Before the body too: a video that would be refused need not be uploaded.
        self.queue.require_room()

        def timed(job: Job) -> _Result:
            result = work(job)
            self.metrics.observe(job.timings)
            return result

        try:
            async with self.receiver.received(request) as upload:
                return await self.queue.run(request, upload, timed)
        except asyncio.CancelledError:
            # The grace period of the server's shutdown has passed.
            self.cut_off += 1
            raise self._stopping() from None
        except Exception as error:
            raise refusal_of(error) from error

    async def drop_old_clips(self) -> None:
        """Evict expired clips from the cache periodically, also without requests."""
        while True:
            await asyncio.sleep(min(max(self.config.clip_cache_seconds / 4, 0.1), 30))
            self.clips.drop_old()

    @staticmethod
    def _stopping() -> Refusal:
        return Refusal("stopping", "the service is being stopped: try again", headers={"Retry-After": "5"})

    def stop(self) -> None:
        """Stop threads and decoder processes, and remove uploaded files."""
        self.is_stopping = True
        self.current.stop()
        self.queue.stop()
        self.pool.close()
        self.clips.clear()
        self._folder.cleanup()


def create_application(config: ServeConfig, *, service: Service | None = None) -> FastAPI:
    """The FastAPI application; its model is loaded at startup, unless the given service has loaded it.

    `application.state.service` is the state that its routes share.
    """
    service = service or Service(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.current.follow()
        tidying = asyncio.create_task(service.drop_old_clips())
        yield
        tidying.cancel()
        # In a thread, so that aborted requests get their response meanwhile.
        await asyncio.to_thread(service.stop)

    application = FastAPI(
        title="two-stream",
        version=VERSION,
        summary="Action recognition on raw videos, with explanations",
        lifespan=lifespan,
        # FastAPI's documentation pages load scripts from a CDN.
        docs_url=None,
        redoc_url=None,
    )
    application.state.service = service
    _add_health(application, service)
    _add_predict(application, service)
    _add_explain(application, service)
    application.include_router(page_routes())
    _add_samples(application, SampleClips(config.samples))
    _add_handlers(application)
    application.add_middleware(functools.partial(_Counted, metrics=service.metrics))
    application.add_middleware(LingeringClose)
    return application


def _add_health(application: FastAPI, service: Service) -> None:
    @application.get("/healthz", summary="Whether the process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @application.get(
        "/readyz",
        summary="Whether a model is loaded",
        responses={200: {"model": ReadyAnswer}, 503: {"model": ReadyAnswer}},
    )
    async def readyz() -> Response:
        loaded = service.current.loaded
        ready = loaded is not None and not service.is_stopping
        body = {"ready": ready, "model": None if loaded is None else loaded.identity()}
        return JSONResponse(body, status_code=200 if ready else 503)

    @application.get(
        "/model",
        summary="The served model version: classes, flow contract, protocol, card, limits",
        responses={200: {"model": ModelAnswer}, 503: {"model": ErrorAnswer}},
    )
    async def model() -> Response:
        if service.current.loaded is None:
            raise Refusal("no_model", "there is no model yet: try again", headers={"Retry-After": "5"})
        return JSONResponse(service.current.describe(service.current.loaded))

    @application.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_predict(application: FastAPI, service: Service) -> None:
    @application.post(
        "/predict",
        summary="Classes of a video",
        openapi_extra=BODY,
        responses={200: {"model": PredictionAnswer, "content": {"application/json": {"example": EXAMPLE}}}, **REFUSED},
    )
    async def predict_video(
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=1_000_000, description="best classes to name, of each data set")] = 5,
        streams: Annotated[
            bool, Query(description="whether to compute the contributions of appearance and motion")
        ] = False,
        head: Annotated[str | None, Query(description="the only data set to answer for")] = None,
    ) -> Response:
        refuse_unknown_parameters(request, "top_k", "streams", "head")
        work = functools.partial(predict, top_k=top_k, streams=streams, head=head)
        return JSONResponse(await service.answer(request, work))


def _add_explain(application: FastAPI, service: Service) -> None:
    @application.post(
        "/explain",
        summary="Classes of a video with the evidence for one: contributions of streams, seconds and image regions",
        openapi_extra=BODY,
        responses=REFUSED | {200: {"model": ExplanationAnswer}},
    )
    async def explain_video(
        request: Request,
        label: Annotated[str | None, Query(description="the class to explain; by default the best")] = None,
        moments: Annotated[int, Query(ge=1, le=MOST_MOMENTS, description="snippets to draw")] = 8,
        clip: Annotated[bool, Query(description="whether to return the prepared video too")] = False,
        top_k: Annotated[int, Query(ge=1, le=1_000_000, description="best classes to name, of each data set")] = 5,
    ) -> Response:
        refuse_unknown_parameters(request, "label", "moments", "clip", "top_k")
        work = functools.partial(explain, label=label, moments=moments, with_clip=clip, top_k=top_k)
        return JSONResponse(await service.answer(request, work))


def _add_samples(application: FastAPI, samples: SampleClips) -> None:
    @application.get("/samples", summary="Sample clips: their names and titles")
    async def list_samples() -> dict[str, list[dict[str, str]]]:
        return {"samples": [{"name": clip.name, "title": clip.title} for clip in samples.all()]}

    @application.get("/samples/{name}", summary="A sample clip", response_class=Response)
    def sample(name: str) -> Response:
        found = samples.content(name)
        if found is None:
            raise Refusal("not_found", "there is no sample of this name: GET /samples lists them")
        return Response(found[0], media_type=found[1], headers={"Cache-Control": "max-age=3600"})


def refuse_unknown_parameters(request: Request, *known: str) -> None:
    """Refuse unknown query parameters, which FastAPI would ignore silently.

    Raises:
        Refusal: a parameter is unknown.
    """
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        raise Refusal("bad_parameter", f"parameters are {', '.join(known)}, got {unknown[0][:60]!r}")


def _add_handlers(application: FastAPI) -> None:
    def answered(refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body(), status_code=refusal.status, headers=refusal.headers)

    @application.exception_handler(RequestValidationError)
    async def bad_parameter(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:])
        return answered(Refusal("bad_parameter", f"{name}: {first['msg']}, got {str(first.get('input'))[:60]!r}"))

    @application.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        kind = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "bad_parameter")
        words = {"not_found": "no such path", "wrong_method": f"{request.method} is not allowed here"}
        return answered(Refusal(kind, words.get(kind, str(error.detail)), headers=error.headers))

    @application.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return answered(refusal)

    @application.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return answered(refusal_of(error))


class _Counted:
    """ASGI middleware that counts responses by route and status."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route, not the path: clients could create any number of label values.
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, watched_send if scope["type"] == "http" else send)
