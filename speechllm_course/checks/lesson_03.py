"Checkers of lesson 03, training."

def check_warmup_rate(f):
    rates = [f(s, 10, 1e-3) for s in range(30)]
    assert rates[0] > 0, "the first step has rate 0, so it does nothing: count (step + 1) / warmup"
    assert max(rates) <= 1e-3 + 1e-12, "the rate goes beyond its top: stop the climb after the warm-up"
    assert abs(rates[9] - 1e-3) < 1e-9, "the last warm-up step should reach the top"
    assert abs(rates[0] - 1e-4) < 1e-9 and abs(rates[4] - 5e-4) < 1e-9, "the climb should be linear: 1/10, 2/10, … of the top"
    assert all(abs(r - 1e-3) < 1e-12 for r in rates[10:]), "after the warm-up the rate stays at the top"
    assert abs(f(0, 4, 2.) - .5) < 1e-9 and abs(f(3, 4, 2.) - 2.) < 1e-9, "with 4 steps of warm-up and a top of 2 the rate begins at 0.5 and is 2 in the fourth step: do not write 10 down"

def check_combined_loss(f):
    got = f([10., 1.], [10, 1])
    assert got == got, "not a number: did you divide by zero?"
    got = f([30., 2.], [10, 1])
    assert abs(got - 2.5) > 1e-6, "you averaged the batches' averages: a label in the short batch then weighs ten times as much; divide the sum of losses by the sum of labels"
    assert abs(got - 32 / 11) < 1e-6, f"losses 30 and 2 over 10 and 1 labels make {32 / 11:.3f} per label, yours says {got:.3f}"
    try: empty = f([0., 6.], [0, 3])
    except ZeroDivisionError: raise AssertionError("a micro-batch without labels must not divide by zero") from None
    assert abs(empty - 2.) < 1e-6, "a micro-batch without labels adds nothing and counts nothing"
