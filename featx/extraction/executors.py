"""Where the parts of an extraction are computed: on Ray, on Dask, or by any executor.

All of them are asked by one call, `submit(function, argument)`, which returns a future as those of
`concurrent.futures`. What starts machines, and tries again what failed, is theirs.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from featx.exceptions import EngineError, MissingExtraError, UnknownNameError, reason
from featx.extraction.parts import Argument, Result, Submit
from featx.threads import usable_processors

ENGINES = ("ray", "dask")
"""What `on` may name; ``dask=ADDRESS`` names a scheduler too."""

# How often an engine tries a part whose process died.
_RETRIES = 3
_LISTEN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where parts are computed, and what each may take there."""

    on: str | Executor
    cpus: int = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if isinstance(self.on, str) and self.on.partition("=")[0] not in ENGINES:
            raise UnknownNameError("engine of a cluster", self.on, ENGINES)
        if not isinstance(self.on, str) and not hasattr(self.on, "submit"):
            raise EngineError(
                "expected on='ray', on='dask', on='dask=tcp://host:8786' or an executor with a "
                f"method submit, received {type(self.on).__name__}"
            )
        if self.cpus < 1 or self.gpus < 0:
            raise EngineError(
                f"expected 1 processor or more a task and 0 GPUs or more, received {self.cpus} and "
                f"{self.gpus}"
            )

    @contextmanager
    def open(self) -> Iterator[Submit]:
        """Yield what submits parts; what was started here is stopped at the end."""
        if not isinstance(self.on, str):
            yield self.on.submit
            return
        name, _, address = self.on.partition("=")
        with ExitStack() as stack:
            yield stack.enter_context(_ray(self) if name == "ray" else _dask(self, address))


@contextmanager
def _ray(where: Where) -> Iterator[Submit]:
    """Use the cluster of ``RAY_ADDRESS``, the one this process is connected to, or a local one."""
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingExtraError("ray", extra="ray", purpose="--on ray (on='ray')") from error
    started = not ray.is_initialized()
    if started:
        _connect(ray)
    options: dict[str, Any] = {"num_cpus": where.cpus, "max_retries": _RETRIES}
    if where.gpus:
        options["num_gpus"] = where.gpus
    remote: dict[Any, Any] = {}
    under_way: dict[Future[Any], Any] = {}

    def submit(function: Callable[[Argument], Result], argument: Argument, /) -> Future[Result]:
        if function not in remote:
            remote[function] = ray.remote(**options)(function)
        reference = remote[function].remote(argument)
        future: Future[Result] = reference.future()
        under_way[future] = reference
        future.add_done_callback(lambda done: under_way.pop(done, None))
        return future

    try:
        yield submit
    finally:
        for reference in list(under_way.values()):
            ray.cancel(reference)  # it writes what it has, as after Ctrl-C
        if started:
            ray.shutdown()


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS")
    _require_listener(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            # Not one that happens to run on this machine, which may be anybody's.
            processors = usable_processors()
            with _loopback_only():
                ray.init(address="local", num_cpus=processors, include_dashboard=False, **quiet)
    # Ray raises ConnectionError, ValueError or an error of its own, and exits where what listens at
    # the address is no Ray.
    except (Exception, SystemExit) as error:
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        raise EngineError(
            f"no Ray cluster {where}: {reason(error)}. Start one with `ray start --head`, or see "
            "that its address is right and that its version is this one"
        ) from error


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Let a Ray that is started in the body listen on this machine's own address only."""
    # What Ray does on macOS and Windows by default. It turns the address 127.0.0.1 of an option
    # into one that others reach, and reads its variable for this when it is imported.
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _require_listener(address: str | None) -> None:
    """Refuse an address where nobody listens, for which Ray would look for minutes."""
    if not address or address in ("auto", "local"):
        return
    if "://" in address:
        raise EngineError(
            f"expected the address of a Ray cluster, host:port, received RAY_ADDRESS={address}: "
            "run featx on a host of the cluster, for example with `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_LISTEN_S):
            pass
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no Ray cluster at RAY_ADDRESS={address}: {reason(error)}. Start one with `ray start "
            "--head`, or see that the address is right"
        ) from error


@contextmanager
def _dask(where: Where, address: str) -> Iterator[Submit]:
    """Use the scheduler at an address, or a local one for as long as this lasts."""
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("distributed", "dask"):
            raise
        raise MissingExtraError("distributed", extra="dask", purpose="--on dask") from error
    with ExitStack() as stack:
        if not address:
            workers = max(1, usable_processors() // where.cpus)
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address=None,
                host="127.0.0.1",
                silence_logs=logging.ERROR,
            )
            address = stack.enter_context(cluster).scheduler_address
        try:
            client = stack.enter_context(Client(address, timeout="10s", set_as_default=False))
        except (OSError, ValueError) as error:
            raise EngineError(
                f"no Dask scheduler at {address}: {reason(error)}. Start one with `dask scheduler`"
                ", or see that its address is right"
            ) from error
        resources = {"resources": {"GPU": where.gpus}} if where.gpus else {}
        executor = client.get_executor(retries=_RETRIES, pure=False, **resources)
        yield executor.submit
