"""What all ranks of a group decide together: each meeting tells all of them the same, also that one has failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from gramjd.errors import InputError, RankError

Group = dist.ProcessGroup
# Numbers that a rank may bring to a meeting: all meetings send as many, so that one that has failed can join any.
MOST = 64


class Ranks:
    """The ranks of a process group, in their order; `rank` is this one.

    A rank that fails says so at the next meeting instead of what it was to bring, so that no other one waits for it:
    all of them raise the same RankError. `sent` counts the bytes that this rank has sent in exchanges.
    """

    def __init__(self, group: Group | None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise InputError(
                "`group` was given, but there is no process group: call torch.distributed.init_process_group first, or "
                "leave `group` out for the losses of one process"
            )
        whole = dist.group.WORLD
        assert whole is not None, "there is a process group"
        outside = group == dist.GroupMember.NON_GROUP_MEMBER  # an int, which new_group returns to all but members
        if group is not None and not outside and not isinstance(group, Group):
            raise InputError(
                f"`group` is a {type(group).__name__}; expected a process group: torch.distributed.group.WORLD for all "
                'ranks, or of a device mesh `mesh.get_group()`, such as mesh["data"].get_group()'
            )
        self.group: Group = whole if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            raise InputError("this process is no member of `group`: only its members make the step")
        nccl = "nccl" in str(dist.get_backend(self.group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self.sent = 0
        self._lost = False

    # -- meetings ----------------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise what fails in the block on all ranks, as one RankError. Every rank must enter it, and meet in it."""
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            if self._lost:
                raise
            self._fail(error)

    def meet(self, *numbers: int) -> list[list[int]]:
        """The numbers of all ranks.

        Raises:
            RankError: another rank has failed.
        """
        found = self._gathered([0, *numbers])
        if any(status for status, *_ in found):
            raise self._failure(None)
        return [rest for _, *rest in found]

    def _fail(self, error: Exception) -> None:
        self._gathered([1])
        raise self._failure(f"{type(error).__name__}: {error}") from error

    def _failure(self, mine: str | None) -> RankError:
        said: list[str | None] = [None] * self.size
        with self._collective():
            dist.all_gather_object(said, mine, group=self.group)
        text = "; ".join(f"rank {rank}: {words}" for rank, words in enumerate(said) if words)
        return RankError(f"{text} (raised on all ranks; `.grad` was left as it was)")

    def _gathered(self, numbers: Sequence[int]) -> list[list[int]]:
        count = len(numbers)
        mine = torch.zeros(MOST + 1, dtype=torch.int64)
        mine[:count] = torch.tensor(numbers)
        mine = mine.to(self.device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self._collective():
            dist.all_gather(found, mine, group=self.group)
        return [one.tolist() for one in found]

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """Where a collective itself fails, as by its timeout, the ranks cannot meet any more."""
        try:
            yield
        except BaseException:
            self._lost = True
            raise

    # -- tensors -----------------------------------------------------------------------------------------------------

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in the memory of the tensor where that is on the device of the group."""
        there = tensor.to(self.device)
        self.sent += 2 * there.nbytes * (self.size - 1) // self.size
        with self._collective():
            dist.all_reduce(there, group=self.group)
        return there.to(tensor.device)

    def of_first(self, tensor: Tensor) -> Tensor:
        """The tensor of rank 0."""
        there = tensor.to(self.device).contiguous()
        with self._collective():
            dist.broadcast(there, self._global(0), group=self.group)
        return there.to(tensor.device)

    def vectors(self, mine: Tensor, counts: Sequence[int]) -> Tensor:
        """The vectors of all ranks, one after the other; rank r has `counts[r]` numbers."""
        padded = torch.zeros(max(counts), dtype=mine.dtype, device=self.device)
        padded[: len(mine)] = mine
        found = [torch.empty_like(padded) for _ in counts]
        with self._collective():
            dist.all_gather(found, padded, group=self.group)
        return torch.cat([one[:n] for one, n in zip(found, counts, strict=True)]).to(mine.device)

    def swapped(self, parcel: Tensor | None, to: int | None, size: int, source: int | None) -> Tensor | None:
        """Send bytes to a rank, and receive `size` of them from another; None: not this time."""
        operations, found = [], None
        if to is not None and parcel is not None:
            self.sent += parcel.nbytes
            operations.append(dist.P2POp(dist.isend, parcel.to(self.device), self._global(to), self.group))
        if source is not None and size:
            found = torch.empty(size, dtype=torch.uint8, device=self.device)
            operations.append(dist.P2POp(dist.irecv, found, self._global(source), self.group))
        with self._collective():
            for work in dist.batch_isend_irecv(operations) if operations else ():
                work.wait()
        return found

    def dealt(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """From rows [m, R w], a share of w columns per rank: this rank's columns of the rows of all, [M, w]."""
        m, width = rows.shape[0], rows.shape[1] // self.size
        given = rows.view(m, self.size, width).transpose(0, 1).contiguous().to(self.device)
        found = given.new_empty(sum(counts), width)
        self.sent += given.nbytes * (self.size - 1) // self.size
        with self._collective():
            dist.all_to_all_single(
                found.view(-1), given.view(-1), [n * width for n in counts], [m * width] * self.size, group=self.group
            )
        return found.to(rows.device)

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self.group, rank)
