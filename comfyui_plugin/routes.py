# SPDX-License-Identifier: Apache-2.0
"""What the page asks of the daemon, on ComfyUI's own server.

Whatever changes something is for the page itself, not for another site that is open beside it.
Calls to the daemon block, so they run in threads of their own and never on the server's loop.
"""
import logging
import os
import queue
import re
import sys
import threading
import urllib.parse

from . import crash, doctor, news, probe, unload
from .session import Unavailable, alone, session

log = logging.getLogger("distorch")

MAX_BODY_BYTES = 4096
N_THREADS = 2  # a daemon that does not answer holds these up, and nothing else
N_LOADS = 2  # at the same time; the next ones wait
MAX_ALLOCATION = 1024  # characters; as the daemon has it
MAX_FILES = 256  # of a question
MODEL_ID = re.compile(r"[0-9a-f]{32}")
PORTS = {"http": 80, "https": 443}
STATUS_OF = {"not-found": 404, "not-allowed": 403, "busy": 409, "pinned": 409,
             "bad-argument": 400, "timeout": 504, "no-memory": 507, "cancelled": 409}
#: Where a loader's file may be too: packs bring folders of their own
ALSO_IN = {"diffusion_models": ("unet_gguf",), "text_encoders": ("clip_gguf",)}


class Refused(Exception):
    """A request that gets no further than here."""

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status, self.reason = status, reason


# ---- who asks, for what ----

def check_origin(headers):
    """Refuse what another site has a browser send. What is no browser sends neither header."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise Refused(403, "only ComfyUI's own page may do this")
        return
    origin = headers.get("Origin")
    if origin is None:
        return
    try:
        theirs = urllib.parse.urlsplit(origin)
        ours = urllib.parse.urlsplit("//" + headers.get("Host", ""))
        default = PORTS.get(theirs.scheme)
        is_same = (theirs.hostname, theirs.port or default) == (ours.hostname, ours.port or default)
    except ValueError:
        is_same = False
    if not is_same or theirs.hostname is None:
        raise Refused(403, "only ComfyUI's own page may do this")


async def body_of(request):
    """What a page says, as a dict."""
    check_origin(request.headers)
    if request.content_type != "application/json":  # what no other site can send unasked
        raise Refused(415, "the body has to be application/json")
    if request.content_length is None or request.content_length > MAX_BODY_BYTES:
        raise Refused(413, f"the body has to say its size, up to {MAX_BODY_BYTES} bytes")
    try:
        body = await request.json()
    except (ValueError, RecursionError):  # the latter of what is nested without end
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body is no object")
    return body


def _model_in(body):
    model = body.get("model")
    if not isinstance(model, str) or not MODEL_ID.fullmatch(model):
        raise Refused(400, "model has to be an id of distorchd: 32 digits in hex")
    return model


def _allocation_in(body):
    allocation = body.get("allocation", "")
    if not isinstance(allocation, str) or len(allocation) > MAX_ALLOCATION:
        raise Refused(400, f"allocation has to be a text of up to {MAX_ALLOCATION} characters")
    return allocation.strip()


async def model_of(request):
    """The id in the body, {"model": id}."""
    return (_model_in(await body_of(request)),)


async def models_of(request):
    """The ids in the body, {"models": [id, ...]}."""
    models = (await body_of(request)).get("models")
    if not isinstance(models, list):
        raise Refused(400, "models has to be a list of ids of distorchd")
    return ({_model_in({"model": one}) for one in models},)


async def unload_of(request):
    """The same; or {"idle": true}, all that nobody uses, keeps or has pinned: None."""
    body = await body_of(request)
    is_idle = body.get("idle") is True and "model" not in body
    return (None if is_idle else _model_in(body),)


async def place_of(request):
    """{"model": id, "allocation": text}"""
    body = await body_of(request)
    allocation = _allocation_in(body)
    if not allocation:
        raise Refused(400, "allocation has to say where: cuda:0,6gb;cpu,* or auto")
    return _model_in(body), allocation


async def load_of(request):
    """{"file": "kind/name", "allocation": text}, the latter if wanted"""
    body = await body_of(request)
    path = path_of(body.get("file"))
    if path is None:
        raise Refused(404, "file has to be one of ComfyUI's model folders: kind/name")
    return path, _allocation_in(body)


async def nothing_of(request):
    """Of what takes a process: for the page alone, as what changes something."""
    await body_of(request)
    return ()


async def client_of(request):
    """The page that wants to be told of changes, if it says who it is."""
    return (request.rel_url.query.get("client"),)


async def files_of(request):
    files = request.rel_url.query.getall("file", ())
    if len(files) > MAX_FILES:
        raise Refused(400, f"file can be said {MAX_FILES} times in a question, not {len(files)}")
    return (files,)


def path_of(file):
    """Of "kind/name" as ComfyUI lists it; None: nothing that it lists. Only its model folders."""
    folders, kinds = probe.module("folder_paths"), probe.model_kinds()
    if not isinstance(file, str) or "/" not in file:
        return None
    kind, name = file.split("/", 1)
    for one in (kind, *ALSO_IN.get(kind, ())):
        if one in kinds and name in folders.get_filename_list(one):
            return folders.get_full_path(one, name)
    return None


# ---- what is asked; in a thread ----

class Asked:
    """What the routes do, of one server."""

    def __init__(self, server):
        self._news = news.News(server)
        self._lock = threading.Lock()
        self._cancelled = {}  # model id, or path while that is not known: is it to end?

    # questions

    def status(self, client=None):
        if client:
            self._news.follow(client)
        found = news.overview()
        if found["available"]:
            found["left"] = news.left_warm()
        return found

    def models(self, files=()):
        """What is held; and of each file that was asked for, its size and what is held of it."""
        held = session.call(lambda connection: connection.list())
        by_path = {one.path: one for one in held if one.path is not None}
        found = {}
        for file in files:
            path = path_of(file)
            if path is None or not os.path.exists(path):
                continue
            model = by_path.get(os.path.realpath(path))
            found[file] = {"bytes": os.path.getsize(path), "model": model and model.id}
        return {"models": [news.model_of(one) for one in held], "files": found}

    def devices(self):
        found = session.call(lambda connection: connection.devices())
        return {"devices": [{**news.device_of(one), "uuid": one.uuid, "held": one.held,
                             "reserved": one.reserved, "foreign": one.foreign,
                             "temperature": one.temperature, "link": one.link}
                            for one in found]}

    # deeds

    def wish(self, **wishes):
        def change(model):
            return {"model": news.model_of(session.call(
                lambda connection: connection.set(model, **wishes)))}

        return change

    def unload(self, model):
        """A load that was begun here is cancelled by it. None: what is idle."""
        if model is None:
            return self._outcomes(session.unload_idle())
        with self._lock:
            if model in self._cancelled:
                self._cancelled[model] = True
                return {"unloaded": [], "kept": [], "held": [], "cancelled": True}
        return self._outcomes(session.call(lambda connection: connection.unload(model)))

    @staticmethod
    def _outcomes(report):
        return {word: [unload.outcome(one) for one in getattr(report, word, ())]
                for word in ("unloaded", "kept", "held")}

    def told(self, models):
        """A page has told of these, which were left."""
        crash.forget(models)
        return {}

    def place(self, model, allocation):
        moved = session.place(model, allocation, news.LABEL)
        return {"model": news.model_of(moved), "moved_bytes": moved.moved_bytes,
                "duration_ms": moved.duration_ms}

    def load(self, path, allocation):
        begun = set()

        def watch(progress):
            with self._lock:
                if progress.model and progress.model not in begun:
                    begun.add(progress.model)
                    self._cancelled[progress.model] = False
                is_over = any(self._cancelled.get(model) for model in begun)
            if is_over and progress.phase != "done":
                raise Unavailable("the load was cancelled", "cancelled")

        options = {"allocation": allocation} if allocation else {}
        try:
            with alone(path) as (file, named):
                model = session.call(lambda connection: connection.load(file, progress=watch,
                                                                        **options, **named))
        finally:
            with self._lock:
                for one in begun:
                    self._cancelled.pop(one, None)
        return {"model": news.model_of(model), "duration_ms": model.duration_ms}


# ---- on the server ----

class Workers:
    """So many threads for what blocks. Python ends without them, as it does not without those of a
    ThreadPoolExecutor: a load that takes minutes must not keep ComfyUI from ending."""

    def __init__(self, n_threads, name):
        self._calls = queue.SimpleQueue()
        self._n_threads, self._name = n_threads, name
        self._threads = []

    def submit(self, function, *arguments):
        """As of an Executor; called by the server's thread alone."""
        from concurrent.futures import Future

        future = Future()
        self._calls.put((future, function, arguments))
        if len(self._threads) < self._n_threads:
            self._threads.append(threading.Thread(target=self._run, daemon=True, name=self._name))
            self._threads[-1].start()
        return future

    def _run(self):
        while True:
            self._do(*self._calls.get())

    @staticmethod
    def _do(future, function, arguments):
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(*arguments))
        except BaseException as failure:  # for who waits
            future.set_exception(failure)


def _answer(web, status_code, body):
    return web.json_response(body, status=status_code, headers={"Cache-Control": "no-store"})


def _handler(web, threads, function, take=None):
    import asyncio

    async def handle(request):
        try:
            arguments = () if take is None else await take(request)
            found = await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
        except Refused as refused:
            return _answer(web, refused.status, {"error": refused.reason})
        except Unavailable as failure:
            return _answer(web, STATUS_OF.get(failure.code, 503),
                           {"error": failure.reason, "code": failure.code})
        return _answer(web, 200, found)

    return handle


def register(server):
    """Put the routes into the aiohttp.web.RouteTableDef of a PromptServer."""
    from aiohttp import web

    asked = Asked(server)
    threads, loads = Workers(N_THREADS, "distorch"), Workers(N_LOADS, "distorch-load")
    for name, function, take in (("status", asked.status, client_of),
                                 ("models", asked.models, files_of),
                                 ("devices", asked.devices, None)):
        server.routes.get(f"/distorch/{name}")(_handler(web, threads, function, take))
    for name, function, take, where in (
            ("pin", asked.wish(pin=True), model_of, threads),
            ("unpin", asked.wish(pin=False), model_of, threads),
            ("keep", asked.wish(keep=True), model_of, threads),
            ("unkeep", asked.wish(keep=False), model_of, threads),
            ("unload", asked.unload, unload_of, threads),
            ("told", asked.told, models_of, threads),
            ("doctor", doctor.look, nothing_of, threads),
            ("place", asked.place, place_of, loads),
            ("load", asked.load, load_of, loads)):
        server.routes.post(f"/distorch/{name}")(_handler(web, where, function, take))


def register_on_server():
    """On ComfyUI's server, when this is a ComfyUI that has one."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if getattr(server, "routes", None) is None:
        return
    try:
        register(server)
    except Exception:  # the loaders do without
        log.warning("distorch: the page has no routes here", exc_info=True)
    add = getattr(server, "add_on_prompt_handler", None)
    if add is not None:
        add(_on_prompt)


def _on_prompt(body):
    from . import prewarm  # read at the first prompt: the start of ComfyUI waits for the rest

    return prewarm.on_prompt(body)
