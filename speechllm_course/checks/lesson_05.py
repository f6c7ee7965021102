"Checkers of lesson 05, encoder."
import itertools

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
    assert f([1, 2, 1]) == 3, "1 2 1 fits into three frames: only equal *neighbours* need a blank between them"
    assert f([]) == 0 and f([7, 7, 7]) == 5, "an empty transcript needs none, 7 7 7 needs five"

def check_count_paths(f):
    got = f(2, [7])
    assert got <= 3, f"7 7, 7 _ and _ 7 spell 7 in two frames, yours counts {got}: compute the new row from the old one, or a path makes two moves in one frame"
    assert got == 3, f"7 7, 7 _ and _ 7 spell 7 in two frames, yours counts {got}: a path begins with the blank or the first label, may stay, and ends on the last label or the blank behind it"
    got = f(2, [1, 2])
    assert got != 0, "1 2 fits into two frames without a blank: between different labels the blank may be skipped"
    assert got == 1, f"in two frames only 1 2 itself spells 1 2, yours counts {got}"
    got = f(2, [1, 1])
    assert got == 0, f"1 1 needs a blank between, so three frames; yours finds {got} in two: between equal labels the blank must not be skipped"
    assert f(3, [1, 2]) == 5, f"three frames spell 1 2 in five ways, yours counts {f(3, [1, 2])}"
    assert f(4, []) == 1, "nothing is spelled in one way: blanks only"
    def collapse(path): return [x for i, x in enumerate(path) if x and (i == 0 or x != path[i - 1])]
    truth = sum(collapse(p) == [1, 2, 2] for p in itertools.product(range(3), repeat=6))
    assert f(6, [1, 2, 2]) == truth, f"six frames spell 1 2 2 in {truth} ways, yours counts {f(6, [1, 2, 2])}"
