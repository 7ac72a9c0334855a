"""The fully connected CRF that aligns label maps and probabilities with the edges of a photograph, and its pool.

The pool's workers run this file as a script: it imports numpy and nothing of the suite, so that a worker starts in a
fraction of a second, without torch. `multiprocessing` would import the whole program again in each (spawn) or copy a
process that has threads (fork); threads do not help, as the CRF holds the interpreter's lock.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from queue import SimpleQueue
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CLIP = 1e-5  # lowest probability: an impossible class has a finite cost, as in the published tools


def require_pydensecrf() -> None:
    """Checks that the CRF package is installed.

    Raises:
        ValueError: it is not.
    """
    if importlib.util.find_spec("pydensecrf") is None:
        raise ValueError("the dense CRF needs pydensecrf2, which is not installed; pip install 'structseg[crf]'")


@dataclass(frozen=True)
class DenseCRF:
    """Mean field inference in a CRF that connects all pixels, by distance and by distance and colour.

    Deterministic. Source: Krähenbühl and Koltun, NeurIPS 2011, in the implementation of pydensecrf2.

    Attributes:
        iterations: of mean field.
        positional_std: standard deviation of the smoothness kernel, pixels.
        positional_compat: its weight.
        bilateral_std: standard deviation of the appearance kernel in place, pixels.
        bilateral_color_std: its standard deviation in colour, 8-bit levels.
        bilateral_compat: its weight.

    Raises:
        ValueError: a setting that is not positive.
    """

    iterations: int
    positional_std: float
    positional_compat: float
    bilateral_std: float
    bilateral_color_std: float
    bilateral_compat: float

    def __post_init__(self) -> None:
        if self.iterations < 1 or not all(value > 0 for value in astuple(self)):
            raise ValueError(f"{self}; every setting of a dense CRF has to be above 0")

    @classmethod
    def irnet(cls) -> DenseCRF:
        """The settings for label maps, with which IRNet makes its seeds (`misc/imutils.py`)."""
        return cls(10, 3, 3, 50, 5, 10)

    @classmethod
    def deeplab(cls) -> DenseCRF:
        """The settings for class probabilities, with which deeplab-pytorch and CONTA score masks.

        There `POS_W 3, POS_XY_STD 1, BI_W 4, BI_XY_STD 67, BI_RGB_STD 3` (`configs/voc12.yaml`): weights come first.
        """
        return cls(10, 1, 3, 67, 3, 4)

    def labels(
        self, image: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int, confidence: float = 0.7
    ) -> NDArray[np.uint8]:
        """The labels (H, W) after the CRF, which starts from labels that are right with the given confidence.

        Only labels that occur take part; those other than a pixel's own share 1 - confidence. (IRNet also counts tags
        without a pixel; they cannot win.)

        Args:
            image: (H, W, 3) uint8.
            labels: (H, W), each below `classes`; no pixel is ignored.
            classes: number of classes.
            confidence: above 0 and below 1.

        Raises:
            ValueError: sizes that differ, a label out of range, or no pydensecrf2.
        """
        _check(image, labels.shape)
        if not 0 < confidence < 1:
            raise ValueError(f"confidence {confidence}; above 0 and below 1 is needed")
        present, indices = np.unique(labels, return_inverse=True)
        if present[-1] >= classes:
            raise ValueError(f"the labels hold {present[-1]}, the classes are 0..{classes - 1}; a CRF ignores no pixel")
        if len(present) == 1:
            return labels.astype(np.uint8)
        costs = np.full((len(present), labels.size), -np.log((1 - confidence) / (len(present) - 1)), np.float32)
        costs[indices.ravel(), np.arange(labels.size)] = -np.log(confidence)
        winners = self._inferred(image, costs).argmax(0)
        return present[winners].astype(np.uint8)

    def probabilities(self, image: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """The class probabilities (K, H, W) after the CRF.

        Args:
            image: (H, W, 3) uint8.
            probabilities: (K, H, W), 0..1 with a sum of 1 over the classes.

        Raises:
            ValueError: sizes that differ, values that are not probabilities, or no pydensecrf2.
        """
        _check(image, probabilities.shape[1:])
        if not np.allclose(probabilities.sum(0), 1, atol=1e-3) or probabilities.min() < 0:
            raise ValueError("the CRF was not given class probabilities (0..1, sum 1); take the softmax first")
        if len(probabilities) == 1:
            return probabilities.astype(np.float32)
        costs = -np.log(probabilities.reshape(len(probabilities), -1).clip(_CLIP, 1)).astype(np.float32)
        return self._inferred(image, costs)

    def _inferred(self, image: NDArray[np.uint8], costs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Marginals (K, H, W) from the cost of each label at each pixel, (K, H * W)."""
        require_pydensecrf()
        from pydensecrf.densecrf import DenseCRF2D  # an extra

        height, width = image.shape[:2]
        field = DenseCRF2D(width, height, len(costs))
        field.setUnaryEnergy(np.ascontiguousarray(costs))
        field.addPairwiseGaussian(sxy=self.positional_std, compat=self.positional_compat)
        field.addPairwiseBilateral(
            sxy=self.bilateral_std,
            srgb=self.bilateral_color_std,
            rgbim=np.require(image, requirements=["C", "W"]),  # a read-only buffer is refused
            compat=self.bilateral_compat,
        )
        return np.array(field.inference(self.iterations), np.float32).reshape(-1, height, width)


def _check(image: NDArray[np.uint8], size: tuple[int, ...]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"the CRF's image is {image.shape} {image.dtype}; (H, W, 3) uint8 is needed")
    if image.shape[:2] != tuple(size):
        raise ValueError(f"the CRF's image is {image.shape[:2]}, its labels are {tuple(size)}; resize one to the other")


def workers_here(given: int | None, devices: int) -> int | None:
    """The number of workers of a `CRFPool` in one process; the processes of all devices share the cores.

    Args:
        given: the user's number for each device; None: not given.
        devices: devices of this machine, one process each.
    """
    return given if given is not None or devices == 1 else len(os.sched_getaffinity(0)) // devices


class CRFPool:
    """Runs a dense CRF on many images in parallel processes; to be used in a `with` block.

    At most two jobs a worker are unfinished at any time, so that memory does not grow with the data.

    Args:
        crf: the settings.
        workers: processes; None = one for each core that this process may use; 0 or 1 = no process, the work is done
            here.

    Raises:
        ValueError: pydensecrf2 is not installed.
    """

    def __init__(self, crf: DenseCRF, workers: int | None = None) -> None:
        require_pydensecrf()
        self.crf = crf
        wanted = len(os.sched_getaffinity(0)) if workers is None else workers
        self.workers = wanted if wanted > 1 else 0
        self._all: list[_Worker] = []

    def __enter__(self) -> CRFPool:
        self._all = [_Worker() for _ in range(self.workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._room = BoundedSemaphore(max(1, 2 * self.workers))
        self._threads = ThreadPoolExecutor(max(1, self.workers), "crf")  # each only waits for its process
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for worker in self._all:
                worker.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.close()
        self._all = []

    def submit_labels(
        self, image: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int, confidence: float = 0.7
    ) -> Future[NDArray[np.uint8]]:
        """`DenseCRF.labels` in a worker; waits while the queue is full."""
        return self._submit("labels", (image, labels, classes, confidence))

    def submit_probabilities(
        self, image: NDArray[np.uint8], probabilities: NDArray[np.float32]
    ) -> Future[NDArray[np.float32]]:
        """`DenseCRF.probabilities` in a worker; waits while the queue is full."""
        return self._submit("probabilities", (image, probabilities))

    def labels(
        self, jobs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8], int]], confidence: float = 0.7
    ) -> Iterator[NDArray[np.uint8]]:
        """`DenseCRF.labels` of each (image, labels, classes), in order; jobs are taken as workers become free."""
        return self._in_order(self.submit_labels(*job, confidence) for job in jobs)

    def probabilities(
        self, jobs: Iterable[tuple[NDArray[np.uint8], NDArray[np.float32]]]
    ) -> Iterator[NDArray[np.float32]]:
        """`DenseCRF.probabilities` of each (image, probabilities), in order; jobs are taken as workers become free."""
        return self._in_order(self.submit_probabilities(*job) for job in jobs)

    def _submit(self, method: str, arguments: tuple[Any, ...]) -> Future[Any]:
        if not self.workers:
            done: Future[Any] = Future()
            done.set_result(getattr(self.crf, method)(*arguments))
            return done
        if not self._all:
            raise ValueError("the CRF pool is closed; use it inside `with CRFPool(...) as pool:`")
        self._room.acquire()
        future = self._threads.submit(self._run, method, arguments)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def _run(self, method: str, arguments: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        try:
            return worker.run((method, astuple(self.crf), arguments))
        finally:
            self._idle.put(worker)  # also a dead one: the next job then fails at once instead of waiting

    def _in_order(self, futures: Iterator[Future[Any]]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        for future in futures:
            waiting.append(future)
            if len(waiting) > 2 * self.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Worker:
    """The parent's side of a process that runs this file."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],  # -P: this folder is not searched for modules
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads},
        )

    def run(self, job: tuple[str, tuple[Any, ...], tuple[Any, ...]]) -> Any:
        """The result of a job.

        Raises:
            ChildProcessError: the process has ended.
            ValueError: as the job raised it.
        """
        try:
            self._send(job)
            succeeded, result = pickle.load(self.process.stdout)  # type: ignore[arg-type]
        except (OSError, EOFError, pickle.UnpicklingError):
            raise ChildProcessError(
                f"a worker of the dense CRF ended with status {self.process.wait()} (-9: killed, mostly for memory); "
                "use fewer workers or smaller images"
            ) from None
        if not succeeded:
            raise ValueError(result)
        return result

    def _send(self, message: Any) -> None:
        stream = self.process.stdin
        assert stream is not None
        pickle.dump(message, stream, protocol=pickle.HIGHEST_PROTOCOL)
        stream.flush()

    def close(self) -> None:
        """Ends the process by a message, as a data loader forked meanwhile may hold its input open."""
        try:
            self._send(None)
            self.process.wait(timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            try:
                stream.close()  # type: ignore[union-attr]
            except OSError:
                continue  # not sent to a dead process
        self.process.wait()


def _serve() -> None:
    """Works until the end message arrives or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    jobs, results = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with the results
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        if job is None:
            return
        method, settings, arguments = job
        try:
            answer = True, getattr(DenseCRF(*settings), method)(*arguments)
        except (ValueError, TypeError, MemoryError) as error:
            answer = False, str(error)
        pickle.dump(answer, results, protocol=pickle.HIGHEST_PROTOCOL)
        results.flush()


if __name__ == "__main__":
    _serve()
