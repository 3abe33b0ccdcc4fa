"""The web application that ``decathlete serve`` starts: our routes, then MONAI Label's, behind the guard."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from monailabel.app import app as monai_label
from monailabel.config import settings
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from monailabel.utils.async_tasks.task import AsyncTask

from decathlete.errors import CheckpointError, DecathleteError, DeviceError, UsageError
from decathlete.label.guard import Guard, NotFoundError
from decathlete.label.routes import router
from decathlete.quiet import quiet

# by the narrowest class first
STATUS = {NotFoundError: 404, UsageError: 422, CheckpointError: 409, DeviceError: 507, DecathleteError: 422}
LOCAL = "DECATHLETE_LABEL_LOCAL"  # "1" where the server listens on this machine alone


async def tell(request: Request, error: Exception) -> JSONResponse:
    """One of our errors as a status and one sentence, without the folder that the server keeps uploads in."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 404)
    detail = " ".join(str(error).split()).replace(f"{os.environ.get('TMPDIR', '')}{os.sep}", "")
    return JSONResponse({"detail": detail}, status_code=status)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """MONAI Label's own start, and at the end the end of what still runs beside the server."""
    async with monai_label.router.lifespan_context(monai_label):
        yield
    for work in ("train", "batch_infer", "scoring"):
        AsyncTask.stop(work)


def build() -> Guard:
    """The application; MONAI Label's stands behind it as it is, but for our errors, which it would call internal."""
    outer = FastAPI(title="decathlete", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    outer.include_router(router)
    for part in (outer, monai_label):
        for kind in (DecathleteError, ImageNotFoundException, LabelNotFoundException):
            part.add_exception_handler(kind, tell)
    outer.mount("/", monai_label)
    remote = settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://"))
    return Guard(outer, local=os.environ.get(LOCAL, "1") == "1", proxy=remote)


quiet()
app = build()
