"""What Prometheus sees of a run, through Ray's own metrics port: ``ray_raysegment_batch_*``, each with the job's name.

A counter begins at nought with every run, as the process does.
"""

from __future__ import annotations


class Metrics:
    """Figures of one run. To be made while Ray runs."""

    def __init__(self, job: str, images: int) -> None:
        from ray.util.metrics import Counter, Gauge

        keys = ("job",)
        self._done = Counter("raysegment_batch_images_done", "Masks that were made.", keys)
        self._failed = Counter("raysegment_batch_images_failed", "Images that were set aside.", keys)
        self._pixels = Counter("raysegment_batch_megapixels_done", "Megapixels of the masks made.", keys)
        self._left = Gauge("raysegment_batch_images_left", "Images that are still to be done.", keys)
        self._seen = Gauge(
            "raysegment_batch_progress_timestamp_seconds", "When an image was last done.", keys
        )
        for metric in (self._done, self._failed, self._pixels, self._left, self._seen):
            metric.set_default_tags({"job": job})
        self._images = images
        self._left.set(images)

    def done(self, megapixels: float, at: float) -> None:
        """A mask was made, at `at` seconds since the epoch."""
        self._done.inc()
        if megapixels:
            self._pixels.inc(megapixels)
        self._seen.set(at)
        self._count_down()

    def failed(self) -> None:
        """An image was set aside."""
        self._failed.inc()
        self._count_down()

    def _count_down(self) -> None:
        self._images -= 1
        self._left.set(self._images)
