"Checkers of lesson 05, encoder."

def check_collapse(f):
    got = list(f([1, 1, 0, 1, 2, 2], 0))
    assert got != [1, 2], "you dropped blanks before merging repeats, so that the two 1s around a blank became one: merge first"
    assert got != [1, 1, 1, 2, 2], "repeats were not merged"
    assert 0 not in got, "blanks must go"
    assert got == [1, 1, 2], f"1 1 _ 1 2 2 collapses to 1 1 2, yours gives {got}"
    assert list(f([0, 0], 0)) == [] and list(f([], 0)) == [], "only blanks, or nothing, gives an empty list"
    assert list(f([5, 5, 3], 3)) == [5], "the blank is given as an argument; it is not always 0"

def check_least_frames(f):
    assert f([1, 2, 3]) == 3, f"three different labels fit into three frames, yours says {f([1, 2, 3])}: blanks between different labels are allowed, not needed"
    got = f([1, 1, 2])
    assert got != 3, "1 1 2 needs four frames: between equal neighbours a blank must stand, or they merge"
    assert got == 4, f"1 1 2 needs four frames, yours says {got}"
    assert f([]) == 0 and f([7, 7, 7]) == 5, "an empty transcript needs none, 7 7 7 needs five"
