"Checkers of lesson 11: units, merged vocabulary, sequences."
import itertools
from unittest import mock

import torch

def check_lloyd_step(f):
    points, centres = torch.tensor([[0., 0.], [0., 1.], [1., 0.], [4., 4.], [5., 4.], [4., 5.]]), torch.tensor([[0., 0.], [0., 1.]])
    before = centres.clone()
    got = f(points, centres)
    assert torch.equal(centres, before), "your function changed the centres that it was given: build new ones"
    assert got.shape == (2, 2), f"two centres in the plane are (2, 2), yours {tuple(got.shape)}"
    assert not torch.allclose(got, torch.tensor([[1., 0.], [13., 14.]])), "the sums of the points came back: divide by how many there are"
    assert not torch.allclose(got, torch.tensor([[3.25, 3.5], [.5, 0.]]), atol=1e-4), "every point went to the centre that is farthest from it: take the smallest distance"
    assert torch.allclose(got, torch.tensor([[.5, 0.], [3.25, 3.5]]), atol=1e-4), f"the six points of the lesson move the centres to (.5, 0) and (3.25, 3.5), yours are {got.tolist()}"
    got = f(torch.tensor([[1., 1.], [1., 2.]]), torch.tensor([[1., 1.], [10., 10.]]))
    assert len(got) == 2, "a centre without points was dropped: K stays as it is, or ids would change their meaning"
    assert not torch.equal(got[1], torch.tensor([1., 1.5])), "points near (1, 1) went to the centre (10, 10), whose dot product with them is larger: half of its squared length must be taken off, or use the distance"
    got = f(torch.tensor([[1., 1.], [1., 2.]]), torch.tensor([[1., 1.], [-9., 7.]]))
    assert not torch.isnan(got).any(), "a centre without points became the mean of nothing, which is not a number: it stays where it is"
    assert not torch.equal(got[1], torch.zeros(2)), "a centre without points went to the origin: it stays where it is"
    assert torch.allclose(got, torch.tensor([[1., 1.5], [-9., 7.]])), f"points (1, 1) and (1, 2), centres (1, 1) and (-9, 7): the first moves to (1, 1.5), the second stays; yours are {got.tolist()}"
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        points, centres = torch.randn(40, 3, generator=g), torch.randn(6, 3, generator=g)
        ids = torch.cdist(points, centres).argmin(1)
        want = torch.stack([points[ids == k].mean(0) if (ids == k).any() else centres[k] for k in range(6)])
        assert torch.allclose(f(points, centres), want, atol=1e-4), "on random points your step differs from the two steps written as loops"

def check_spans(f):
    def run(ids): return [tuple(s) for s in f(torch.tensor(ids, dtype=torch.long))]
    got = run([7, 7, 7, 3, 3])
    assert got != [(7, 0, 3)], "7 7 7 3 3 gave only the run of 7: the last run ends with the clip"
    assert got not in ([(7, 0, 2), (3, 3, 4)], [(7, 0, 2), (3, 2, 4)]), "the end is the last frame plus one, so that end minus begin is the length"
    assert got == [(7, 0, 3), (3, 3, 5)], f"7 7 7 3 3 has the spans (7, 0, 3) and (3, 3, 5), yours {got}"
    got = run([4, 4, 9, 4])
    assert len(got) == 3, f"4 4 9 4 has three runs, since 4 comes back after 9; yours has {len(got)}: {got}"
    assert got == [(4, 0, 2), (9, 2, 3), (4, 3, 4)], f"4 4 9 4 has the spans (4, 0, 2), (9, 2, 3) and (4, 3, 4), yours {got}"
    got = run([0, 0, 5])
    assert got == [(0, 0, 2), (5, 2, 3)], f"0 0 5 gave {got}: unit 0 is a unit like any other"
    assert run([]) == [], "a clip without frames has no spans: an empty list"
    assert all(type(x) is int for span in f(torch.tensor([1, 1, 2])) for x in span), "plain integers, please: `.tolist()` or `int(…)`"
    with mock.patch.object(torch, "unique_consecutive", side_effect=AssertionError("without `torch.unique_consecutive`, please: it is what you are writing here")), mock.patch.object(torch.Tensor, "unique_consecutive", side_effect=AssertionError("without `unique_consecutive`, please")): run([7, 7, 3])
    g = torch.Generator().manual_seed(0)
    for n in range(1, 40):
        ids = torch.randint(3, (n,), generator=g).tolist()
        runs = [(unit, len(list(group))) for unit, group in itertools.groupby(ids)]
        ends = list(itertools.accumulate(length for _, length in runs))
        assert run(ids) == [(unit, end - length, end) for (unit, length), end in zip(runs, ends)], f"{ids} gave {run(ids)}"

def check_delay(f):
    codes = torch.tensor([[1, 2, 3], [4, 5, 6]])
    before = codes.clone()
    got = f(codes, 0)
    assert torch.equal(codes, before), "your function changed the codes that it was given: build a new tensor"
    assert got.shape != codes.shape, "as many columns as before: the last code of the second row was lost, or came round at the front; there are T + Q - 1 columns"
    assert got.shape == (2, 4), f"two rows of three codes, the second one step later, take four columns; yours is {tuple(got.shape)}"
    assert got.tolist() != [[0, 1, 2, 3], [4, 5, 6, 0]], "the first row was shifted and the second was not: row q moves by q steps"
    assert got.tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]], f"1 2 3 and 4 5 6 become 1 2 3 · and · 4 5 6, yours {got.tolist()}"
    got = f(codes, 9)
    assert got.tolist() == [[1, 2, 3, 9], [9, 4, 5, 6]], f"with 9 for empty the open places hold 9, yours {got.tolist()}"
    got = f(torch.arange(1, 7).view(3, 2), 0)
    assert got.tolist() == [[1, 2, 0, 0], [0, 3, 4, 0], [0, 0, 5, 6]], f"three rows 1 2, 3 4 and 5 6: row 2 moves by two steps, yours {got.tolist()}"
    assert f(torch.tensor([[1, 2]]), 0).tolist() == [[1, 2]], "a single row is not delayed"

def check_grow(f):
    g = torch.Generator().manual_seed(1)
    table = torch.randn(50, 3, generator=g) * torch.tensor([1., 10., .1]) + torch.tensor([5., 0., -2.])
    before = table.clone()
    def run(K, seed=0): return f(table, K, torch.Generator().manual_seed(seed))
    got = run(4)
    assert torch.equal(table, before), "your function changed the table that it was given: build a new one"
    assert got.shape != (4, 3), "only the new rows came back: the old ones stand in front of them"
    assert got.shape == (54, 3), f"50 rows and 4 new ones are (54, 3), yours {tuple(got.shape)}"
    assert not torch.equal(got[4:], table), "the new rows stand in front: every old id would now mean another token"
    assert torch.equal(got[:50], table), "the old rows changed: text must mean what it meant, to the last bit"
    new = got[50:]
    assert not torch.allclose(new, new[:1].expand_as(new)), "all new rows are alike: add the scatter, or nothing tells them apart"
    assert torch.equal(run(4), got), "the same generator gave other rows: draw with the generator that is handed in"
    assert not torch.equal(run(4, 1), got), "another generator gave the same rows: draw with the generator that is handed in"
    many = run(20_000)[50:]
    assert not (many.mean(0).abs() < .3).all(), "the new rows scatter around zero: begin at the mean of the old ones"
    spread = many.std(0) / table.std(0)
    assert not torch.allclose(many.std(0), many.std(0)[:1].expand(3), rtol=.1), "every number scatters alike: take the standard deviation over rows, one for each column"
    assert torch.allclose(spread, torch.ones(3), atol=.06), f"the new rows scatter {[round(x, 2) for x in spread.tolist()]} times as much as the old ones, column by column; it should be once (`table.std(0)`)"
    assert torch.allclose(many.mean(0), table.mean(0), atol=.3), f"the mean of many new rows is {[round(x, 2) for x in many.mean(0).tolist()]}, that of the old ones {[round(x, 2) for x in table.mean(0).tolist()]}"
