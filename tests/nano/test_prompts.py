import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.nano.objects import COLOURS, OBJECTS
from fourdfy_cli.nano.prompts import MOTIONS, SYNONYMS, Subject, known_words, parse


@pytest.mark.parametrize(
    "prompt, text",
    [
        ("a red dog jumping", "a red dog jumping"),
        ("Jumping DOG, red!", "a red dog jumping"),
        ("the puppies are hopping", "a dog jumping"),
        ("an orange kitten that is walking", "an orange cat walking"),
        ("crimson torus", "a red donut"),
        ("two-tone".replace("two-tone", "some blue fishes"), "a blue fish"),
        ("boxes", "a cube"),
        ("red red dog dog", "a red dog"),
    ],
)
def test_free_order_articles_plurals_and_synonyms(prompt, text):
    assert parse(prompt).text() == text


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "  ",
        "!!",
        "a red panda",
        "a dog with a hat",
        "a red blue dog",
        "a dog and a cat",
        "red jumping",
        "la perra roja",
        "\x1b[31mdog\x00 x",
    ],
)
def test_what_is_not_understood_stops(prompt):
    with pytest.raises(FourdfyError) as error:
        parse(prompt)
    assert error.value.code == 2 and "fourdfy generate " in error.value.hint and "\n" not in error.value.message


def test_an_unknown_word_is_named_with_the_known_ones():
    with pytest.raises(FourdfyError) as error:
        parse("a red panda")
    assert "'panda'" in error.value.message and error.value.hint.endswith("fourdfy generate 'a red panda' --models paper")
    assert all(word in error.value.message for word in (*OBJECTS, *COLOURS, *MOTIONS))


subjects = st.builds(Subject, st.sampled_from(list(OBJECTS)), st.sampled_from([None, *COLOURS]), st.sampled_from([None, *MOTIONS]))


@given(subjects, st.randoms())
def test_canonical_text_reads_back_in_any_order(subject, random):
    words = subject.text().split()
    assert parse(" ".join(words)) == subject
    random.shuffle(words)
    assert parse(" ".join(words)) == subject


def test_no_synonym_means_two_things():
    words = [w for canonical, others in SYNONYMS.items() for w in (canonical, *others.split())]
    assert len(words) == len(set(words)) and set(SYNONYMS) == {*OBJECTS, *COLOURS, *MOTIONS}
    assert not set(known_words()) & {"a", "an", "the"}
