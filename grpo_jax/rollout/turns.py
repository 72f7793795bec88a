"""Who answers the model between its replies, as the sampler sees them."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Partner(Protocol):
    """Who answers the model's replies while it is sampled. Rows are numbered p * G + g over this host's prompts and
    their G responses.
    """

    def replied(self, row: int, ids: list[int], room: int) -> None:
        """The model has ended a reply with these tokens (its end token included); `room` tokens are left for the
        answer and the next reply: 0 if the row ends with this reply in any case.
        """
        ...

    def answers(self, wait: bool) -> dict[int, list[int] | None]:
        """Answers that have come since this was last asked: the tokens that the row reads next (fewer than its room),
        None if its conversation is over. With `wait`, returns as soon as there is at least one.
        """
        ...
