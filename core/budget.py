"""How many tokens a batch may have, learned while working."""

GROW_AFTER = 64
"""Batches of full size without trouble after which the limit for memory is raised again."""

SMOOTHING = 0.2
"""Weight of the newest batch in the measured speed."""


class TokenBudget:
    """Most tokens in a batch, padding included: what fits in memory, and no more than `batch_seconds` of work.

    Short batches keep interactive work from waiting; the first batch knows no speed yet and is as large as memory allows.

    Args:
        most: tokens of the largest batch ever tried.
        least: tokens of the longest input; a batch of one must always be allowed.
        batch_seconds: how long a batch should take on this device.
    """

    def __init__(self, most: int, least: int, batch_seconds: float) -> None:
        self._most = most
        self._least = min(least, most)
        self._batch_seconds = batch_seconds
        self._fits = most
        self._good = 0
        self.tokens_per_second = 0.0

    @property
    def tokens(self) -> int:
        if not self.tokens_per_second:
            return self._fits
        return max(self._least, min(self._fits, int(self.tokens_per_second * self._batch_seconds)))

    def succeeded(self, tokens: int, seconds: float) -> None:
        """A batch of so many tokens took so long."""
        speed = tokens / max(seconds, 1e-6)
        self.tokens_per_second += (speed - self.tokens_per_second) * (SMOOTHING if self.tokens_per_second else 1)
        if self._fits < self._most and 2 * tokens > self._fits:
            self._good += 1
            if self._good >= GROW_AFTER:
                self._fits, self._good = min(self._most, self._fits * 2), 0

    def ran_out(self, tokens: int) -> None:
        """A batch of so many tokens did not fit in memory."""
        self._fits, self._good = max(self._least, min(self._fits, tokens) // 2), 0
