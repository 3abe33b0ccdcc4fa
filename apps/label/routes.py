"""The requests that we answer in MONAI Label's place, checked first and worked on in threads.

MONAI Label works on them in its event loop, so that nobody else is answered meanwhile, and takes what comes: unknown
models, bodies of any kind, files of any content. The answers have its form.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import monailabel.endpoints.activelearning as activelearning
import monailabel.endpoints.batch_infer as batch_infer
import monailabel.endpoints.datastore as datastore
import monailabel.endpoints.infer as infer
import monailabel.endpoints.scoring as scoring
import monailabel.endpoints.train as train
import nibabel as nib
import numpy as np
import requests
import SimpleITK
from fastapi import APIRouter, Body, File, Form, Query, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, PlainTextResponse, Response
from monailabel.config import settings
from monailabel.datastore.utils.convert import nifti_to_dicom_seg
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance

from decathlete.bundle.checkpoints import BEST, load_weights, plain_weights, save_checkpoint
from decathlete.bundle.configs import load
from decathlete.errors import DataError, UsageError
from decathlete.files import NIFTI_SUFFIXES, strip_nifti_suffix
from decathlete.io.volume import header_of
from decathlete.label.drawing import SUFFIXES as LABEL_SUFFIXES
from decathlete.label.drawing import known_bundle, nrrd_fields
from decathlete.label.guard import NotFoundError, check_info, check_name, check_tag, number, switch
from decathlete.label.main import LabelApp
from decathlete.label.retraining import Settings, no_labels
from decathlete.label.segmentation import NOT_INTERACTIVE, Segmentation, device_of
from decathlete.label.studies import StudiesFolder, label_files
from decathlete.planning.conversion import read_other

router = APIRouter()

Params = Annotated[str, Form()]
Json = Annotated[dict[str, Any] | None, Body()]
RESERVED = ("ts", "name", "path", "strategy", "id", "dice", "dice_of_labels", "sum", "slices")
LOG_LINES = 10_000
EVERY = BatchInferImageType.IMAGES_ALL


def app() -> LabelApp:
    """The running app."""
    return app_instance()


def known(name: str, there: Mapping[str, Any], what: str) -> Any:
    """What goes by a name.

    Raises:
        NotFoundError: nothing does.
    """
    if name not in there:
        raise NotFoundError(f"{what} '{name[:80]}'", f"no such {what} on this server", "",
                            f"Known: {', '.join(sorted(there)) or 'none'}")  # fmt: skip
    return there[name]


@router.post("/infer/{model}")
def predict(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Params = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: infer.ResultType | None = None,
) -> Any:
    """Label map of an image of the studies, of a session, or of a file that comes along."""
    instance = app()
    task = known(model, instance._infers, "model")
    given = check_info(params, "params")
    if label is not None:
        raise UsageError("label", "scribbles are not used", f"{(label.filename or '')[-80:]!r}", NOT_INTERACTIVE)
    if given.get("image"):
        raise UsageError("params, image", "the image is named in the wrong place", f"{str(given['image'])[:80]!r}",
                         f"Name it in the address: /infer/{model}?image=...")  # fmt: skip
    request = task.options(given) | {"model": model}
    if switch(given, "save_label", False):
        request |= {"save_label": True, "label_tag": check_tag(given.get("label_tag") or "original", "label_tag")}
        request["result_extension"] = NIFTI_SUFFIXES[0]  # labels of the studies are NIfTI
    with contextlib.ExitStack() as stack:
        if file is not None:
            request["image"] = str(stack.enter_context(received_image(file, "file")))
        elif session_id:
            request["image"] = str(_image_of_session(instance, session_id))
        elif image:
            request["image"] = image
        else:
            raise UsageError("infer", "no image", "", "Name an image or a session, or send a file")
        if output == infer.ResultType.dicom_seg and isinstance(instance.datastore(), StudiesFolder):
            raise UsageError("output", "DICOM SEG needs studies on a DICOMweb server",
                             "the studies are a folder of NIfTI images", "Ask for output=image")  # fmt: skip
        result = instance.infer(request)
        if output == infer.ResultType.dicom_seg:
            result["dicom_seg"] = _dicom_seg(instance, image, result["file"], task, given)
        return infer.send_response(instance.datastore(), result, output, background_tasks)


def _dicom_seg(instance: LabelApp, image: str, label: str, task: Segmentation, given: Mapping[str, Any]) -> str:
    """File of a label map as DICOM SEG, segments named by the viewer, or else as the bundle does."""
    own = [{"name": name, "model_name": task.name} for name in sorted(task.labels, key=task.labels.__getitem__)]
    named = given.get("label_info") or own
    series = instance.datastore().get_image_uri(image).removesuffix(NIFTI_SUFFIXES[0])
    file = nifti_to_dicom_seg(series, label, segments_there(label, named))
    if not file or not os.path.isfile(file):
        raise DataError(f"series '{image}'", "no DICOM SEG was written", "the label map is empty, or its writer failed",
                        "See /logs/")  # fmt: skip
    return file


def segments_there(label: str, named: list[Any]) -> list[Any]:
    """What is said of the label values that occur: MONAI Label gives the first name to the first that does."""
    if not isinstance(named, list) or not all(isinstance(info, dict) for info in named):
        raise UsageError("label_info", "expected a list of objects, one a label value from 1 on", f"{named!r:.80}")
    there = np.unique(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(label)))  # a view would outlive its image
    return [named[int(value) - 1] for value in there if 0 < value <= len(named)]


def _image_of_session(instance: LabelApp, session_id: str) -> Path:
    session = instance.sessions().get_session(check_name(session_id, "session_id"))
    if session is None:
        raise NotFoundError(f"session '{session_id}'", "no such session on this server", "", "Open one: PUT /session/")
    return Path(session.image)


@router.put("/datastore/")
@router.put("/datastore/image")
def add_image(file: Annotated[UploadFile, File()], image: str | None = None, params: Params = "{}") -> dict[str, Any]:
    """Put an image into the studies, under ``image`` or the file's own name."""
    store = app().datastore()
    info = check_info(params, "params", RESERVED)
    name = check_name(image or strip_nifti_suffix(Path(file.filename or "").name).removesuffix(".nrrd"), "image")
    with received_image(file, "file") as path:
        if isinstance(store, StudiesFolder):
            store.check_image(path)
        return {"image": store.add_image(name, str(path), info)}


@router.get("/datastore/image")
def send_image(image: str) -> FileResponse:
    """An image of the studies; from an archive it is fetched first."""
    return datastore.download_image(image)


@router.get("/datastore/label")
def send_label(label: str, tag: str) -> FileResponse:
    """A label of the studies."""
    return datastore.download_label(label, tag)


@router.get("/datastore/dataset")
def send_all(background_tasks: BackgroundTasks, limit_cases: Annotated[int | None, Query(ge=1)] = None) -> FileResponse:
    """Images with final labels as a ZIP."""
    if not app().datastore().get_labeled_images():
        raise no_labels()
    archive = app().datastore().get_dataset_archive(limit_cases)
    background_tasks.add_task(os.unlink, archive)
    return FileResponse(archive, media_type="application/zip", filename="dataset.zip")


@router.put("/datastore/label")
def add_label(
    image: str, label: Annotated[UploadFile, File()], tag: str = "final", params: Params = "{}"
) -> dict[str, Any]:
    """Put what was drawn on an image into the studies: each class by its name, for the bundle that has it."""
    instance = app()
    store, info = instance.datastore(), check_info(params, "params", RESERVED)
    tag, bundle = check_tag(tag or "final"), known_bundle(info, instance.classes)
    store.check_known(image)
    with (
        received(label, "label", LABEL_SUFFIXES) as path,
        label_files(store, image, path, info, bundle) as files,
    ):
        for owner, file in files.items():
            there = segments_there(str(file), instance.classes.described(owner))
            if not there and not isinstance(store, StudiesFolder):
                raise DataError(f"label of {image}", "nothing is drawn", "", "An archive keeps no empty DICOM SEG")
            label_id = store.save_label(image, str(file), tag, info | {"model": owner, "label_info": there})
    several = {"bundles": list(files)} if len(instance.classes.bundles) > 1 else {}
    return (instance.on_save_label(image, label_id) or {}) | {"image": image, "label": label_id} | several


@router.put("/datastore/image/info")
def set_image_info(image: str, info: Params = "{}") -> None:
    """Add remarks to an image."""
    app().datastore().update_image_info(check_name(image, "image"), check_info(info, "info", RESERVED))


@router.put("/datastore/label/info")
@router.put("/datastore/updatelabelinfo")
def set_label_info(label: str, tag: str, info: Params = "{}") -> None:
    """Add remarks to a label."""
    app().datastore().update_label_info(check_name(label, "label"), check_tag(tag), check_info(info, "info", RESERVED))


@router.put("/model/{model}")
def replace_weights(model: str, file: Annotated[UploadFile, File()]) -> dict[str, Any]:
    """Serve other weights of a model; those of before stay beside them."""
    task = known(model, app()._infers, "model")
    with received(file, "file", (".pt",)) as path:
        network = load(task.folder, "inference", {"device": "cpu"}).get_parsed_content("network_def")
        weights = plain_weights(load_weights(network, path, where=f"for {model}"))
    task.weights.parent.mkdir(exist_ok=True)
    if task.weights.is_file():
        before = task.weights.with_name(f"earlier_{task.weights.stat().st_mtime_ns}.pt")
        shutil.copy2(task.weights, before)
    save_checkpoint(weights, task.weights.with_name(BEST))
    return app().model_info(model)


@router.put("/session/")
def open_session(
    files: Annotated[list[UploadFile], File()], uncompress: bool = False, expiry: Annotated[int, Query(ge=0)] = 0
) -> dict[str, Any]:
    """Keep an image that is not one of the studies for some predictions."""
    if uncompress or len(files) != 1:
        raise UsageError("session", "expected one NIfTI or NRRD file",
                         "an archive" if uncompress else f"{len(files)} files")  # fmt: skip
    with received_image(files[0], "files") as path:
        store = app().datastore()
        if isinstance(store, StudiesFolder):
            store.check_image(path)
        name, info = app().sessions().add_session(str(path), min(expiry, 86_400))
    return {"session_id": name, "session_info": info.to_json()}


@router.post("/train/")
def start_trainings(params: Json = None) -> dict[str, Any]:
    """Start a training of each bundle that has final labels, one after the other.

    Viewers that choose no model send this; what they set for a bundle stands under its name.
    """
    instance, given = app(), params or {}
    mine = [name for name in instance._trainers if instance.datastore().labelled(name)]
    if not mine:
        raise no_labels()
    asked = {name: given | (given[name] if isinstance(given.get(name), dict) else {}) for name in mine}
    bodies = {name: Settings.of(body) for name, body in asked.items()}
    tasks = {name: _train(name, body, enqueue=name != mine[0]) for name, body in bodies.items()}
    return {name: {"result": task, "detail": None} for name, task in tasks.items()}


@router.post("/train/{model}")
def start_training(model: str, params: Json = None, run_sync: bool = False, enqueue: bool = False) -> Any:
    """Start a training on the final labels of the studies, in a process of its own."""
    instance = app()
    known(model, instance._trainers, "trainer")
    if run_sync:
        raise UsageError("run_sync", "a training runs beside the server, not within a request", "true",
                         "Ask GET /train/ how it goes")  # fmt: skip
    settings_ = Settings.of(params or {})
    if not instance.datastore().labelled(model):
        raise no_labels(model)
    return _train(model, settings_, enqueue)


def _train(model: str, settings_: Settings, enqueue: bool) -> Any:
    body = {name: getattr(settings_, name) for name in ("device", "max_epochs", "val_split", "pretrained")}
    return train.run_model(model, body | {"multi_gpu": settings_.gpus is not None}, False, enqueue)


@router.post("/batch/infer/{model}")
def start_batch(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: Json = None,
    run_sync: bool = False,
) -> Any:
    """Predict many images of the studies and keep the labels, in a process of its own."""
    task, given = known(model, app()._infers, "model"), params or {}
    body = task.options(given) | {
        "multi_gpu": switch(given, "multi_gpu", True),
        "label_tag": check_tag(given.get("label_tag") or "original", "label_tag"),
        "max_batch_size": int(number(given, "max_batch_size", 0, 0, 10**6)),
        "max_workers": int(number(given, "max_workers", 1, 1, 64)),
    }
    task.predictor(body["device"], body["model_filename"], body["tta"])  # no weights, or wrong ones: reported now
    return batch_infer.run(model, images, body, run_sync)


@router.post("/scoring/{method}")
def start_scoring(method: str, params: Json = None, run_sync: bool = False) -> Any:
    """Score images or labels of the studies."""
    known(method, app()._scoring_methods, "scoring method")
    given = params or {}
    body: dict[str, Any] = {name: check_tag(given[name], name) for name in ("y", "y_pred") if given.get(name)}
    body |= {"max_samples": int(number(given, "max_samples", 0, 0, 10**6)), "device": device_of(given)}
    return scoring.run_method(method, body, run_sync)


@router.post("/activelearning/{strategy}")
def next_image(strategy: str, params: Json = None) -> dict[str, Any]:
    """The image to label next, {} where all are labelled."""
    known(strategy, app()._strategies, "strategy")
    given = params or {}
    return activelearning.sample(strategy, {"client_id": str(given.get("client_id", ""))[:100]}, "user")


@router.post("/scoring/")
def name_one() -> Response:
    """All at once, which MONAI Label calls deprecated, is not served."""
    raise UsageError("path", "no scoring method named", "", f"Known: {', '.join(sorted(app()._scoring_methods))}")


@router.get("/logs/")
def log_lines(lines: Annotated[int, Query(ge=1, le=LOG_LINES)] = 300) -> PlainTextResponse:
    """The last lines of the server's log; MONAI Label's page loads programs from other servers."""
    file = Path(settings.MONAI_LABEL_APP_DIR, "logs", "app.log")
    if not file.is_file():
        raise NotFoundError("logs", "no log yet")
    with file.open(encoding="utf-8", errors="replace") as log:
        return PlainTextResponse("".join(deque(log, lines)))


@router.get("/proxy/dicom/{way}/{path:path}")
def from_archive(request: Request, way: Literal["qido", "wado"], path: str) -> Response:
    """What the DICOMweb server says; MONAI Label's own way there leaves out what comes behind the question mark."""
    prefix = settings.MONAI_LABEL_QIDO_PREFIX if way == "qido" else settings.MONAI_LABEL_WADO_PREFIX
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    answer = requests.get(
        "/".join(part.strip("/") for part in (settings.MONAI_LABEL_STUDIES, prefix or "", path) if part),
        params=request.url.query,
        auth=(user, password) if user and password else None,
        timeout=settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
    )
    return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))


@contextlib.contextmanager
def received_image(upload: UploadFile, what: str) -> Iterator[Path]:
    """An image that was uploaded, as a temporary NIfTI file; 3D Slicer can be set to send NRRD.

    Raises:
        UsageError: its name says that it is neither.
        DataError: it is empty, or no volume.
    """
    with received(upload, what, (*NIFTI_SUFFIXES, ".nrrd")) as path:
        if path.suffix != ".nrrd":
            yield path
            return
        nrrd_fields(path)
        array, affine = read_other(path)
        with tempfile.TemporaryDirectory(prefix="image_") as folder:
            file = Path(folder) / f"{path.stem}.nii.gz"
            header = header_of(array.shape, affine)
            header.set_data_dtype(array.dtype)
            nib.save((nib.Nifti2Image if header.sizeof_hdr == 540 else nib.Nifti1Image)(array, affine, header), file)
            yield file


@contextlib.contextmanager
def received(upload: UploadFile, what: str, suffixes: tuple[str, ...] = NIFTI_SUFFIXES) -> Iterator[Path]:
    """An upload as a temporary file, which goes when the block ends.

    Raises:
        UsageError: its name ends in none of ``suffixes``.
        DataError: it is empty.
    """
    name = (upload.filename or "").lower()
    suffix = next((end for end in suffixes if name.endswith(end)), None)
    if suffix is None:
        raise UsageError(f"{what}, name of the file", f"expected a name that ends in {' or '.join(suffixes)}",
                         f"{name[-80:]!r}")  # fmt: skip
    handle, path = tempfile.mkstemp(prefix="upload_", suffix=suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(upload.file, file)
            if not file.tell():
                raise DataError(what, "the file is empty", "", "Send it again")
        yield Path(path)
    except DataError as error:  # the user's name of the file tells more than ours
        where = error.where.replace(path, Path(upload.filename or what).name)
        raise type(error)(where, error.rule, error.found, error.remedy) from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # a session takes it away
            os.unlink(path)
