"""The demo family's text encoder: deterministic, bound to objects, and of a fixed length."""

import torch

from foresight.demo.text import TOKENS, WIDTH, encode_text, encode_words, split_words


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a, b, dim=-1).item()


def test_words_are_lower_case_without_punctuation():
    assert split_words("A red circle, (moving)  LEFT. It's über!") == [
        "a", "red", "circle", "moving", "left", "it's", "über",
    ]


def test_text_is_padded_and_cut_to_a_fixed_length():
    rows = encode_text("a red circle")
    assert rows.shape == (TOKENS, WIDTH) and rows.dtype == torch.float32
    assert rows[:3].any(1).all() and not rows[3:].any()
    assert not encode_text("").any() and not encode_text(" ., ").any()
    assert torch.equal(encode_text("red " * 40), encode_text("red " * TOKENS))
    assert encode_words([]).shape == (0, WIDTH)


def test_rows_have_unit_variance():
    rows = encode_words(split_words("a big red circle left of a small blue square on a white background"))
    assert torch.allclose(rows.pow(2).mean(1), torch.ones(len(rows)), atol=1e-5)
    assert rows.mean(1).abs().max() < 0.1


def test_encoding_never_changes():
    state = torch.get_rng_state()
    rows = encode_words(["red", "circle"])
    assert torch.equal(rows, encode_words(["red", "circle"]))
    assert torch.equal(torch.get_rng_state(), state)
    # Weights are trained on these numbers.
    expected = torch.tensor([-0.7223, 1.3161, -0.1176, -0.1176, 1.6521, -0.7114])
    assert torch.allclose(rows[0, :6], expected, atol=1e-4), rows[0, :6]


def test_same_word_is_like_itself_in_any_context_and_unlike_others():
    left = encode_words(split_words("a red circle left of a blue square"))
    right = encode_words(split_words("a blue square left of a red circle"))
    assert alike(left[1], right[6]) > 0.5  # red
    assert alike(left[2], left[7]) < 0.3  # circle, square


def test_colour_and_shape_of_one_object_are_bound():
    words = "a red circle left of a blue square".split()
    red_circle = encode_words(words)[2]
    words[1], words[6] = words[6], words[1]
    blue_circle = encode_words(words)[2]
    red = encode_words(["red"])[0]
    assert alike(red_circle, red) > alike(blue_circle, red) + 0.1


def test_first_object_differs_from_second_and_keeps_its_mark_when_named_again():
    text = "a red circle above a red square, the red circle moves left, the red square moves up"
    rows = encode_words(split_words(text))
    first, second, again, other = rows[2], rows[6], rows[9], rows[14]
    assert alike(first, again) > alike(first, second) + 0.2
    assert alike(second, other) > alike(first, second) + 0.2
    assert alike(rows[10], rows[15]) < 0.95  # the two "moves"
