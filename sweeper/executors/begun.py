"""A local cluster with its engines' actors, begun while the driver still prepares model and rows.

    begin_cluster -> [thread: cluster -> actors asked for -> each imports torch and the engine] ... `with begun as room` -> `take`
                                                      anything goes wrong before, or everything is over: `end`

Purpose: starting Ray and importing torch in every actor is most of a sweep's start-up, and needs nothing but the executor's spec.
One thread starts the cluster, waits, and leaves it: Ray's processes are told by the kernel to end with the thread that began them.
Whoever entered waits until it was left. Where nobody did, `end` waits for nobody, so that a user's mistake is told at once; the
process lives on until the thread has left the cluster.
Does not know: what is trained, or whether anything will be. Cost: the import of Ray, a second of the caller's time.
"""

from __future__ import annotations

import threading
from types import TracebackType

import ray

from sweeper.errors import ResourceError
from sweeper.executors.cluster import Room, await_ending, cluster, ends_with
from sweeper.executors.remote import AskedActor, ask_actor
from sweeper.spec.models import ExecutorSpec


class Begun:
    """See above. As a context manager it gives the room, once the cluster is there, and ends it."""

    def __init__(self, spec: ExecutorSpec) -> None:
        self._spec = spec
        self._room: Room | None = None
        self._error: ResourceError | None = None
        self._actors: list[AskedActor] = []
        self._there = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="cluster")
        self._thread.start()

    def __enter__(self) -> Room:
        """Raises ResourceError where the cluster cannot be started, or has no room."""
        self._there.wait()
        if self._error is not None:
            raise self._error
        assert self._room is not None
        return self._room

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # Whoever entered has handles of actors and results: to let go of one while Ray is being left ends the process.
        self.end()
        self.left()

    def take(self) -> list[AskedActor]:
        """The actors, one for each worker of the room; they are the caller's from now on."""
        actors, self._actors = self._actors, []
        return actors

    def forgo(self) -> None:
        """Ends the actors once the cluster is there, and leaves the cluster to others until `end`. Raises as entering does."""
        self.__enter__()
        for asked in self.take():
            ray.kill(asked.actor)

    def end(self) -> None:
        """Has the cluster left, actors and all, as soon as that can be; does not wait for it. A second call is nothing."""
        if not self._over.is_set():
            ends_with(self._thread)
            self._over.set()

    def left(self) -> None:
        """Waits until the cluster was left, after `end`."""
        self._thread.join()

    def _live(self) -> None:
        try:
            with cluster(self._spec) as room:
                if not self._over.is_set():
                    self._actors = [ask_actor(room) for _ in range(room.workers)]
                    for asked in self._actors:
                        asked.actor.warm.remote(max(1, int(room.cpus)))
                    self._room = room
                    self._there.set()
                while not self._over.wait(1.0) and threading.main_thread().is_alive():
                    pass
        except ResourceError as error:
            self._error = error
        except Exception as error:
            self._error = ResourceError(f"a local Ray cluster cannot be used: {str(error).strip()}")
        finally:
            self._there.set()


def begin_cluster(spec: ExecutorSpec) -> Begun | None:
    """Begins a cluster of our own for `spec`; None where this process is in a cluster already."""
    await_ending()
    return None if ray.is_initialized() else Begun(spec)
