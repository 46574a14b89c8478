"""Replay is exact in tokens, deterministic, and never puts two objectives into one batch."""

import numpy as np
import pytest
import torch

from kleiber.data.mixture import Mixture
from kleiber.objectives.clm import CLM
from kleiber.retention.memory import GeneratedSamples, generate_samples, reference_samples
from kleiber.retention.replay import Replay
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Task

from .toys import (
    CONTEXT,
    NEW,
    OLD,
    TASKS,
    Labels,
    Language,
    Letters,
    learned,
    model,
    padded_batch,
    penalty_of,
    step_gradient,
)

MIDDLE = Language(3, rows=70)


def replayed(data, parts, positions):
    """How many of the samples at these places come from the last `parts` parts."""
    ids, _ = data.order(0).samples_at(positions)
    return int((ids >= data.starts[-1 - parts]).sum())


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 0.01])
def test_every_block_has_exactly_its_fraction_of_earlier_tokens(fraction):
    data = Replay(fraction).data(NEW, TASKS, CLM())
    block = data.order(0).block
    for b in range(12):
        assert replayed(data, 1, np.arange(b * block, (b + 1) * block)) == round(fraction * block) > 0


def test_earlier_tasks_share_the_fraction_and_a_mixture_keeps_its_proportions():
    tasks = [*TASKS, Task("middle", CLM(), MIDDLE, MIDDLE)]
    data = Replay(0.2).data(Mixture([NEW, Language(4)], [0.75, 0.25]), tasks, CLM())
    assert [share / sum(data.counts) for share in data.counts] == [0.6, 0.2, 0.1, 0.1]


def test_an_earlier_mixture_is_replayed_in_its_fractions_and_not_by_the_sizes_of_its_parts():
    small, large = Language(5, rows=20), Language(6, rows=300)
    earlier = Mixture([small, large], [0.75, 0.25])
    tasks = [Task("both", CLM(), OLD, earlier)]
    data = Replay(0.2).data(NEW, tasks, CLM())
    assert [share / sum(data.counts) for share in data.counts] == pytest.approx([0.8, 0.15, 0.05])
    kept = Replay(0.2, memory=40 * CONTEXT).data(NEW, tasks, CLM())
    assert kept.counts == data.counts and [len(part) for part in kept.parts[1:]] == [20, 10]
    with pytest.raises(ValueError, match=r"fraction=0.002 .* 1 .*at least 0.004"):
        Replay(0.002).data(NEW, tasks, CLM())


def test_without_blocks_that_hold_it_the_fraction_is_refused():
    shared = [*TASKS, Task("middle", CLM(), MIDDLE, MIDDLE)]
    with pytest.raises(ValueError, match=r"retention.replay.fraction=0.001 .* 2 .*at least 0.002"):
        Replay(0.001).data(NEW, shared, CLM())


def test_the_fraction_that_was_set_is_refused_with_the_least_one_for_tasks_beside_the_batch_too():
    shared = [*TASKS, Task("labels", Labels(), MIDDLE, MIDDLE)]
    with pytest.raises(ValueError, match=r"retention.replay.fraction=0.0015 .* 2 .*at least 0.002$"):
        Replay(0.0015).data(NEW, shared, CLM())
    Replay(0.002).data(NEW, shared, CLM())


def test_the_least_fraction_is_rounded_up_so_that_it_is_accepted():
    earlier = Mixture([Language(5), Language(6)], [0.7, 0.3])
    with pytest.raises(ValueError, match=r"fraction=0.001 .*at least 0.0034$"):
        Replay(0.001).data(NEW, [Task("both", CLM(), OLD, earlier)], CLM())
    Replay(0.0034).data(NEW, [Task("both", CLM(), OLD, earlier)], CLM())


def test_a_task_whose_loss_depends_on_the_whole_step_is_not_replayed_beside_the_batch():
    class Coupled(Labels):
        def prepare_step(self, model, batches):
            return batches

    with pytest.raises(ValueError, match=r"retention.replay .*task pairs .*objective=coupled .*l2sp"):
        Replay(0.5).data(NEW, [Task("pairs", Coupled(), OLD, OLD)], CLM())


def earlier_rows(method, blocks):
    """The rows of earlier text, as tuples, that these blocks read."""
    data = method.data(NEW, TASKS, CLM())
    order = data.order(0)
    ids, epochs = order.samples_at(np.arange(blocks * order.block))
    old = ids >= data.starts[-2]
    rows = zip(ids[old], epochs[old], strict=True)
    return [tuple(data.gather(np.array([i]), int(epoch)).tokens[0].tolist()) for i, epoch in rows]


@pytest.mark.slow
def test_a_memory_is_all_that_is_ever_replayed_and_its_fraction_stays():
    whole, bounded = (earlier_rows(Replay(0.2, memory=memory), 40) for memory in (None, 12 * CONTEXT))
    assert len(bounded) == len(whole) == 160
    assert len(set(bounded)) == 12 and len(set(whole)) > 100
    assert set(bounded) <= {tuple(row.tolist()) for row in OLD.tokens}
    assert set(bounded) == set(earlier_rows(Replay(0.05, memory=12 * CONTEXT), 60)), "one memory, whatever the rate"
    assert earlier_rows(Replay(0.2, memory="1M"), 40) == whole, "a memory larger than the text holds the text"


def test_generated_text_is_a_function_of_model_and_seed():
    net = learned()
    one, two, other = (generate_samples(net, 0, 320, seed) for seed in (1, 1, 2))
    assert one.shape == (20, CONTEXT + 1) and bool((one[:, 0] == Letters.eos).all())
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert not torch.equal(one, generate_samples(model(), 0, 320, 1))


def test_generated_replay_reads_no_earlier_text():
    method = Replay(0.5, "generated", 320, vocabulary=Letters())
    method.begin_stage(learned(), [Task("old", CLM(), OLD)], 0)
    data = method.data(NEW, [Task("old", CLM(), OLD)], CLM())
    batch = data.parts[1].gather(np.arange(20))
    assert torch.equal(batch.tokens, method.memory["text"].long())
    assert data.parts[1].num_bytes == data.parts[1].num_tokens == 320


def test_generated_text_begins_as_a_document_of_the_training_text():
    class Begun(Letters):
        bos, mask = 5, -1

    for vocabulary, begin in ((Begun(), 0), (Begun().with_separator("bos"), 5)):
        method = Replay(0.5, "generated", 320, vocabulary=vocabulary)
        method.begin_stage(learned(), [Task("old", CLM(), OLD)], 0)
        assert bool((method.memory["text"][:, 0] == begin).all())


def test_a_task_of_another_objective_is_replayed_beside_the_batch_under_its_own():
    net, method = learned(), Replay(0.5)
    tasks = [Task("labels", Labels(), OLD, OLD)]
    method.begin_stage(net, tasks, 0)
    assert method.data(NEW, tasks, CLM()) is NEW, "nothing of it may enter a batch of text"
    batch = NEW.gather(np.arange(64))
    drawn = reference_samples(tasks[0], batch, 0, 5, 0, 1.0)
    assert drawn is not None and len(drawn) == 64, "as many samples as the batch has at one half"
    expected = Labels()(net, drawn)
    found = penalty_of(method, net, batch, 5)
    assert found.value.item() == pytest.approx(expected.total.item() / 64)
    assert method.extra_passes(64) == (0, 1)


@pytest.mark.parametrize("rows", [4, 1])
def test_the_penalty_of_a_step_does_not_depend_on_its_micro_batches(rows):
    net, method = learned(), Replay(0.4)  # micro-batches then have unequal numbers of earlier samples
    tasks = [Task("labels", Labels(), OLD, OLD)]
    method.begin_stage(net, tasks, 0)
    method.data(NEW, tasks, CLM())
    whole, means = step_gradient(net, CLM(), padded_batch(), 8, [method])
    split, split_means = step_gradient(net, CLM(), padded_batch(), rows, [method])
    assert torch.allclose(split, whole, atol=1e-5)
    assert split_means["retention/replay"].item() == pytest.approx(means["retention/replay"].item(), rel=1e-5)


def test_tasks_that_are_mixed_in_and_beside_the_batch_have_equal_shares():
    method = Replay(0.4)
    data = method.data(NEW, [*TASKS, Task("labels", Labels(), MIDDLE, MIDDLE)], CLM())
    mixed = data.counts[1] / sum(data.counts)
    ((_, rate),) = method.separate
    assert [(1 - mixed) / (1 + rate), mixed / (1 + rate), rate / (1 + rate)] == pytest.approx([0.6, 0.2, 0.2])


class Conversations(Language):
    """Padded rows of the lengths 4 and `longest` in turn."""

    padded = True

    def __init__(self, seed, longest, first=4):
        super().__init__(seed)
        self.lengths = torch.tensor([first, 4 + longest - first] * 100)
        self.num_tokens = int(self.lengths.sum())

    def gather(self, index, epoch=0):
        lengths = self.lengths[torch.from_numpy(index)]
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        return Batch(self.tokens[torch.from_numpy(index), : real.shape[1]], real=real, samples=torch.from_numpy(index))


@pytest.mark.parametrize("first", [4, 12])
def test_padded_rows_are_mixed_in_by_tokens_whatever_the_length_of_the_first(first):
    old, new = Conversations(1, 16), Conversations(2, 12, first)
    data = Replay(0.2).data(new, [Task("old", CLM(), OLD, old)], CLM())
    tokens = [count * part.num_tokens / len(part) for count, part in zip(data.counts, data.parts, strict=True)]
    assert tokens[1] / sum(tokens) == pytest.approx(0.2, abs=1e-3)


def test_rows_without_padding_are_mixed_in_with_rows_of_their_length_alone():
    class Short(Language):
        def gather(self, index, epoch=0):
            return Batch(super().gather(index, epoch).tokens[:, :8], samples=torch.from_numpy(index))

    method, tasks = Replay(0.2), [Task("old", CLM(), OLD, Short(1))]
    assert method.data(NEW, tasks, CLM()) is NEW and len(method.separate) == 1
    padded = [Task("old", CLM(), OLD, Conversations(1, 16))]
    assert method.data(NEW, padded, CLM()) is NEW and len(method.separate) == 1


class OwnLayer(Labels):
    """`Labels` with scores of its output layer in the loss."""

    def __call__(self, model, batch):
        hidden = model(Batch(batch.tokens[:, :-1])).hidden
        return Loss(model.heads["labels"](hidden).square().sum(), torch.tensor(float(len(batch))), {})


def test_the_output_layer_of_a_replayed_task_has_a_gradient_also_where_no_sample_is_drawn():
    """A step would else depend on the ranks: where none has drawn a sample, Adam would leave the layer as it is."""
    net, method = learned(), Replay(0.001)
    net.add_head("labels", 2)
    tasks = [Task("labels", OwnLayer(), OLD, OLD)]
    method.begin_stage(net, tasks, 0)
    method.data(NEW, tasks, CLM())
    batch = NEW.gather(np.arange(4))
    assert [number for _, _, number in method.drawn(net, batch, 3)] == [0]
    penalty = penalty_of(method, net, batch, 3)
    penalty.value.backward()
    assert penalty.value.item() == 0.0 and not net.heads["labels"].weight.grad.any()


def test_replayed_samples_without_targets_add_nothing(monkeypatch):
    net, method = learned(), Replay(0.5)
    tasks = [Task("labels", Labels(), OLD, OLD)]
    method.begin_stage(net, tasks, 0)
    method.data(NEW, tasks, CLM())
    monkeypatch.setattr(Labels, "__call__", lambda self, net, batch: Loss(net.head.weight.sum(), torch.zeros(()), {}))
    penalty = penalty_of(method, net, NEW.gather(np.arange(8)), 5)
    assert penalty.value.item() == 0.0
    penalty.value.backward()
    assert not net.head.weight.grad.any()


def test_reference_samples_do_not_depend_on_how_the_batch_is_split():
    batch = NEW.gather(np.arange(40))
    whole = reference_samples(TASKS[0], batch, 1, 2, 0, 0.7)
    parts = [reference_samples(TASKS[0], part, 1, 2, 0, 0.7) for part in batch.split(7)]
    rows = torch.cat([part.tokens for part in parts if part is not None])
    assert whole is not None and torch.equal(whole.tokens, rows)
    steps = [reference_samples(TASKS[0], batch, 1, step, 0, 0.7) for step in range(60)]
    counts = [len(samples) for samples in steps if samples is not None]
    assert np.mean(counts) == pytest.approx(28, abs=2)


def test_written_rows_count_the_bytes_of_their_targets():
    token_bytes = np.array([0, 1, 3, *[1] * 9])
    rows = GeneratedSamples(torch.tensor([[0, 1, 2], [2, 2, 0]]), token_bytes)
    assert (rows.num_tokens, rows.num_bytes, len(rows)) == (4, 1 + 3 + 3 + 0, 2)
    assert (rows.first(3).num_bytes, len(rows.first(None))) == (4, 2)


def test_domains_of_one_corpus_are_one_text_to_replay():
    assert len(Replay(0.2).data(NEW, [*TASKS, Task("same", CLM(), MIDDLE, OLD)], CLM()).parts) == 2
