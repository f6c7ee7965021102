"Checkers of lesson 10, token mapping."
import torch

def check_collapse_runs(f):
    _ = 9                                                                    # the blank
    def run(labels, lengths): return f(torch.tensor(labels), torch.arange(len(labels[0])) < torch.tensor(lengths)[:, None], _).tolist()
    got = run([[1, 1, _, 1, 2]], [5])
    assert got != [[1, 2]], "1 1 _ 1 2 gave 1 2: the blank between the two 1s keeps them apart, so compare neighbours before blanks are dropped"
    assert got != [[1, 1, 1, 2]], "1 1 _ 1 2 gave 1 1 1 2: equal neighbours are one run"
    assert got == [[1, 1, 2]], f"1 1 _ 1 2 collapses to 1 1 2, yours gives {got}"
    got = run([[1, 2, 3, 3], [4, 4, 5, 5]], [4, 2])
    assert len(got) == 2 and len(got[0]) == 3, f"the longest clip has three tokens, so the result is (2, 3), yours is {len(got)} rows of {[len(g) for g in got]}"
    assert got[1] != [4, 5, -1], "the second clip has two real frames, 4 4: what stands in the padding was not said"
    assert got == [[1, 2, 3], [4, -1, -1]], f"clips 1 2 3 3 and 4 4 give [[1, 2, 3], [4, -1, -1]], yours {got}: number the runs of every clip from 0, and fill up with -1"
    assert run([[1, _, _], [_, _, _]], [3, 3]) == [[1], [-1]], "a clip of blanks only has no token: a row of -1"
    g = torch.Generator().manual_seed(0)
    labels, mask = torch.randint(6, 10, (20, 30), generator=g), torch.arange(30) < torch.randint(1, 31, (20, 1), generator=g)
    for row, m, mine in zip(labels, mask, f(labels, mask, _)):
        merged = torch.unique_consecutive(row[m])
        assert mine[mine >= 0].tolist() == merged[merged != _].tolist(), f"{row[m].tolist()} (blank 9) gave {mine.tolist()}"

def check_soft_tokens(f):
    words, silence = torch.eye(2), torch.zeros(2)
    p = torch.tensor([[.6, .3, .1], [.2, .2, .6]])
    got = f(p.log(), words, silence, 1.)
    assert got.shape == (2, 2), f"two frames and rows of width 2 make (2, 2), yours {tuple(got.shape)}"
    assert not torch.allclose(got[0], torch.tensor([2 / 3, 1 / 3]), atol=1e-4), "the tokens' shares of the first frame were brought to 1 without the blank: the blank keeps its share"
    assert torch.allclose(got, p[:, :2], atol=1e-4), f"at temperature 1 the first frame is .6 of the first row and .3 of the second, yours is {got[0].tolist()}"
    got = f(p.log(), words, torch.tensor([10., 10.]), 1.)
    assert torch.allclose(got[0], torch.tensor([1.6, 1.3]), atol=1e-4), "the blank has a row, too: its probability times `silence` belongs to the sum"
    half = f(p.log(), words, silence, .5)[0]
    assert not torch.allclose(half, torch.tensor([.6, .3]) ** .5 / (torch.tensor([.6, .3, .1]) ** .5).sum(), atol=1e-4), "temperature .5 made it softer: divide the logs by the temperature, do not multiply"
    assert not torch.allclose(half, torch.tensor([1.2, .6]), atol=1e-4), "temperature .5 doubled the probabilities: divide the logs before the softmax, not the probabilities"
    assert torch.allclose(half, torch.tensor([.36, .09]) / .46, atol=1e-4), f"at temperature .5 probabilities are squared and brought to a sum of 1 again, yours gives {half.tolist()}"

def check_cif_loop(f):
    eye = torch.eye
    got = f(torch.tensor([.5, .5, .5, .5]), eye(4), .45)
    assert got.shape == (2, 4), f"four halves make two tokens, yours {tuple(got.shape)}"
    got = f(torch.tensor([.5, .25, .5, .25, .5]), eye(5), .45)
    assert not torch.allclose(got.sum(1)[:1], torch.tensor([1.25])), "the first token holds 1.25: only the part of the third frame that is missing belongs to it"
    assert torch.allclose(got[0], torch.tensor([.5, .25, .25, 0, 0])), f"the first token takes half of the third frame's .5, yours is {got[0].tolist()}"
    assert len(got) == 2 and torch.allclose(got[1], torch.tensor([0, 0, .25, .25, .5])), f"the second token begins with the rest of the third frame, .25; yours has {got[1:].tolist()} behind the first"
    got = f(torch.tensor([.5, 2.5]), eye(2), .45)
    assert got.shape == (3, 2), f"3.0 in two frames are three tokens, yours makes {len(got)}: one frame can complete several"
    got = f(torch.tensor([.5, .5, .25]), eye(3), .45)
    assert len(got) == 1, "a rest of .25 is less than the tail of .45: it is no token"
    got = f(torch.tensor([.5, .5, .5]), eye(3), .45)
    assert len(got) == 2 and torch.allclose(got[1], torch.tensor([0., 0., .5])), "a rest of .5 is at least the tail of .45: it fires, too, as it is"
