"Counting: two ways of writing the same words are equal, in any alphabet."
import pytest

from speechllm_course.evaluate import exact, normalise, wer

@pytest.mark.parametrize("text, wanted", [("Turn ON the light, please!", "turn on the light please"), ("I’d like—a coffee", "i'd like a coffee"), ("drink=Latte", "drink=latte"), ("हिन्दी में।", "हिन्दी में"), ("cafe\u0301", "café"), ("می‌خواهم", "میخواهم"), ("snake_case ½", "snake case ½")])
def test_normalise(text, wanted): assert normalise(text) == wanted and normalise(wanted) == wanted

def test_marks_do_not_cut_words():
    assert wer(["हिन्दी में"], ["हिन्दी में"]) == 0. and wer(["हिन्दी में"], ["हिन्दी"]) == .5
    assert exact(["I'd"], ["i’d"]) == [True]

def test_another_kind_of_model_is_named():
    "For an id of the hub, too, whose folder is not here."
    from speechllm_course.lm import not_there
    said = ValueError("Unrecognized configuration class <class 'transformers.models.hubert.configuration_hubert.HubertConfig'> for this kind of AutoModel: AutoModelForCausalLM.")
    assert "it holds a hubert" in str(not_there("facebook/hubert-base-ls960", "language model", said))
