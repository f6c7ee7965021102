"Checkers of lesson 06, model."
import torch

def check_stack_frames(f):
    x = torch.arange(10.).view(5, 2)                       # (T=5, D=2)
    got = f(x, 2)
    assert got.shape != (2, 4), "the fifth frame is gone: fill the tail with zeros instead of dropping it"
    assert got.shape == (3, 4), f"five frames of width 2, k = 2, make (3, 4), yours {tuple(got.shape)}"
    assert got[0].tolist() == [0., 1., 2., 3.], f"the first row should be frame 0 and then frame 1, [0, 1, 2, 3]; yours is {got[0].tolist()}: neighbours in time belong together"
    assert got[2].tolist() == [8., 9., 0., 0.], "the last row is the fifth frame and zeros behind it"
    assert f(x[:1], 4).shape == (1, 8), "a clip shorter than k must give one position"
    assert f(x[:4], 2).shape == (2, 4), f"four frames, k = 2, make two positions, yours {len(f(x[:4], 2))}: where nothing is missing, nothing is filled"

def check_position_ids(f):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 1, 1, 0]])
    got = f(mask)
    assert got.shape == mask.shape, "one position for every place"
    assert got[0].tolist() != [0, 1, 2, 3, 4], "you counted the padding: the first real token must have position 0, wherever it stands"
    assert int(got.min()) >= 0, "padding has position -1, which no table has: clamp at 0"
    holes = got[2][mask[2].bool()].tolist()
    assert holes != [0, 2, 3], "padding may also stand between real tokens, where it must not be counted: count the real ones up to each place"
    right = [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]
    assert got[mask.bool()].tolist() == right, f"the real tokens of these three rows should have positions {right}; yours {got[mask.bool()].tolist()}"

def check_compact_left(f):
    rows, masks = [[5, 6, -7, 7, 9], [8, 1, 2, 9, 3]], [[1, 1, 1, 1, 0], [1, 0, 0, 1, 0]]
    got, real = f([list(r) for r in rows], [list(m) for m in masks], -7)
    got, real = [list(r) for r in got], [list(m) for m in real]
    assert got[0] != [-7, 5, 6, 7] and got[0] != [5, 6, 7], "a real entry may have the same value as the filler: ask the mask, not the value"
    assert len({len(r) for r in got}) == 1, "rows of a batch have one length: pad the short ones"
    assert len(got[0]) == 4, f"the longest row keeps four entries, so all rows have four, yours {len(got[0])}: what is padding in every row goes"
    assert [x for x in got[1] if x != -7] != [8, 1], "you kept the first entries of the row, as many as the mask has marks; keep those that it marks"
    assert got[1] != [0, 0, 8, 9], "the filler is the third argument, and not always 0"
    assert got[1] != [8, 9, -7, -7], "the padding stands on the right: generation continues at the right end, so it must be on the left"
    assert got == [[5, 6, -7, 7], [-7, -7, 8, 9]], f"should be [[5, 6, -7, 7], [-7, -7, 8, 9]], yours {got}: keep the order of what is kept"
    assert [[int(m) for m in r] for r in real] == [[1, 1, 1, 1], [0, 0, 1, 1]], f"the masks should be [[1, 1, 1, 1], [0, 0, 1, 1]], yours {real}: one for every entry that was kept"
