"Checkers of lesson 04, language model."

def check_scored_labels(f):
    ids, labels = f([1, 20, 2], [30, 31], 3)
    assert list(ids) == [1, 20, 2, 30, 31, 3], f"the ids should be prompt, answer, end; got {list(ids)}" + ("" if 3 in list(ids) else ": without the end token the model never learns to stop")
    assert len(labels) == len(ids), "one label for every id"
    assert labels[0] == -100 and labels[2] == -100, "the prompt must not be scored: its labels are -100, or the model learns to ask questions"
    assert labels[1] == -100, "the whole prompt is left out, not only its ends"
    assert list(labels[3:]) == [30, 31, 3], f"answer and end are scored, unshifted (the loss shifts); got {list(labels[3:])}"
    answer = [20, 31]
    assert list(f([1, 20, 2], answer, 3)[1]) == [-100, -100, -100, 20, 31, 3], "an answer may repeat a token of the prompt, as every transcript does: leave positions out, not values"
    assert answer == [20, 31], "you changed the list that you were given; build a new one"

def check_merge_pair(f):
    word = ["l", "o", "w", "l", "o"]
    assert f(word, ("l", "o")) == ["lo", "w", "lo"], f"l o w l o with the pair (l, o) becomes lo w lo, yours gives {f(['l', 'o', 'w', 'l', 'o'], ('l', 'o'))}"
    assert word == ["l", "o", "w", "l", "o"], "you changed the list that you were given; build a new one"
    got = f(["a", "a", "a"], ("a", "a"))
    assert got != ["aa", "aa"], "a letter was used twice: after a merge, go on behind both its parts"
    assert got == ["aa", "a"], f"a a a with (a, a) becomes aa a, yours gives {got}"
    assert f(["x"], ("x", "y")) == ["x"], "a last letter without a neighbour must stay"
    assert f(["xl", "o"], ("l", "o")) == ["xl", "o"], "only whole symbols are joined: xl is another symbol than l"
