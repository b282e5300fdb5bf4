"""The micro world: what it says must be true in it, and its verifier must know."""

import json
import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit import world
from codit.world import constraints, facts, instructions, language, tasks, tokens, verifier
from codit.world.constraints import Constraint, obeys
from codit.world.recipes import Answers, World, WorldPrompts

SMALL = World(people=32)
SPLITS = ("train", "dev", "test", "families")
ROWS = world.prompts(WorldPrompts(world=SMALL, n=300))


@pytest.fixture(scope="module")
def tokenizer():
    return world.train_tokenizer("a", SMALL, documents_read=3000)


def row(*asked, references=(), rivals=()):
    return {
        "constraints": [{"kind": c.kind, "value": c.value} for c in asked],
        "references": list(references),
        "rivals": list(rivals),
    }


# -- facts and language --------------------------------------------------------------------------


def test_every_person_has_one_value_of_every_attribute_and_a_unique_name():
    people = facts.people(SMALL)
    assert len({p.name for p in people}) == 32
    assert all(p.facts[a] in values for p in people for a, values in facts.ATTRIBUTES.items())


def test_another_seed_is_another_world_and_the_same_seed_the_same():
    assert facts.people(World(seed=1)) != facts.people(World(seed=0))
    assert facts.people(World(seed=1)) == facts.people(World(seed=1))


def test_every_thing_and_place_has_facts_of_its_own():
    assert set(facts.things(SMALL)) == set(facts.ITEMS)
    assert set(facts.places(SMALL)) == set(facts.PLACES)
    assert len(set(facts.ITEMS) | set(facts.PLACES)) == len(facts.ITEMS) + len(facts.PLACES)
    assert facts.things(World(seed=1)) != facts.things(World(seed=0))


def test_more_people_than_names_is_refused():
    with pytest.raises(ValueError, match="at most 980; got 5000. Ask for fewer people"):
        facts.people(World(people=5000))


def test_splits_of_people_are_disjoint_and_cover_everyone():
    splits = [facts.residents(SMALL, s) for s in ("train", "dev", "test")]
    names = [p.name for split in splits for p in split]
    assert len(names) == len(set(names)) == 32
    with pytest.raises(ValueError, match="split must be one of .*; got 'tset'"):
        facts.residents(SMALL, "tset")


def test_prose_states_only_what_is_true():
    sentences = {p.sentence(a) for p in facts.people(SMALL) for a in facts.ATTRIBUTES}
    draw = random.Random(0)
    told = [s for _ in range(200) for s in constraints.sentences(language.prose(draw, SMALL))]
    assert {s for s in told if not s.startswith("A ")} <= sentences


def test_a_constraint_never_asks_for_a_word_that_the_task_holds():
    for prompt in ROWS:
        asked = [c["value"] for c in prompt["constraints"] if c["kind"] in ("contains", "begins")]
        assert not {w for w in asked if prompt["instruction"].lower().count(w) > 1}


def test_documents_repeat_with_their_seed_and_differ_between_seeds():
    first = list(islice(world.documents(SMALL, 3), 20))
    assert first == list(islice(world.documents(SMALL, 3), 20))
    assert first != list(islice(world.documents(SMALL, 4), 20))


def test_the_language_has_at_most_two_thousand_word_forms():
    text = " ".join(islice(world.documents(World()), 5000))
    assert len(set(constraints.words(text))) <= 2000


# -- instructions --------------------------------------------------------------------------------


def test_ideal_answers_of_all_splits_satisfy_the_verifier():
    for split in SPLITS:
        for prompt in world.prompts(WorldPrompts(world=SMALL, split=split, n=150)):
            verdict = world.verify(prompt["ideal"], prompt)
            assert (verdict.strict, verdict.loose, verdict.correct, verdict.score) == (
                True, True, True, 10,
            ), prompt  # fmt: skip


def test_careless_answers_are_right_but_seldom_obedient():
    recipe = WorldPrompts(world=SMALL, n=1000)
    rows, given_ = world.prompts(recipe), world.answers(Answers(prompts=recipe, ideal_share=0))
    verdicts = [world.verify(a["response"], r) for a, r in zip(given_, rows, strict=True)]
    assert all(v.correct for v in verdicts)
    assert 0.1 < sum(v.strict for v in verdicts) / 1000 < 0.35


def test_the_ideal_share_is_the_share_of_ideal_answers():
    rows = world.answers(Answers(prompts=WorldPrompts(world=SMALL, n=1000), ideal_share=0.3))
    assert abs(sum(r["is_ideal"] for r in rows) / 1000 - 0.3) < 0.05


def test_every_family_and_every_constraint_occurs():
    held_out = world.prompts(WorldPrompts(world=SMALL, split="families", n=100))
    assert {r["family"] for r in ROWS} == set(tasks.FAMILIES) - set(tasks.HELD_OUT)
    assert {r["family"] for r in held_out} == set(tasks.HELD_OUT)
    assert len(tasks.FAMILIES) == 13
    assert {c["kind"] for r in ROWS for c in r["constraints"]} == set(constraints.PHRASES)


def test_a_smaller_number_of_prompts_is_a_prefix_of_a_larger():
    assert world.prompts(WorldPrompts(world=SMALL, n=50)) == ROWS[:50]


def test_no_instruction_is_in_two_splits_or_on_a_page():
    drawn = {
        s: {r["instruction"] for r in world.prompts(WorldPrompts(world=SMALL, split=s, n=400))}
        for s in SPLITS
    }
    assert not drawn["train"] & (drawn["dev"] | drawn["test"] | drawn["families"])
    assert not drawn["dev"] & drawn["test"]
    draw = random.Random(0)
    pages = {instructions.web_instruction(draw, SMALL).text for _ in range(2000)}
    assert not pages & (drawn["dev"] | drawn["test"] | drawn["families"])


def test_people_of_dev_and_test_are_never_asked_about_in_training():
    held_out = {p.name for s in ("dev", "test") for p in facts.residents(SMALL, s)}
    asked = {w for r in ROWS for w in r["instruction"].replace(".", " ").replace("?", " ").split()}
    assert not held_out & asked


def test_a_search_for_instructions_in_vain_ends_with_what_to_do(monkeypatch):
    monkeypatch.setattr(instructions, "IN_VAIN", 20)
    expected = "expected 100000 instructions; the split 'test' of this world has hardly more than"
    with pytest.raises(
        ValueError, match=expected + r" \d+\. Ask for fewer, or for a world of more"
    ):
        world.prompts(WorldPrompts(world=SMALL, split="test", n=100_000))


def test_an_unknown_split_of_prompts_is_refused():
    with pytest.raises(ValueError, match="split must be one of .*; got 'all'. Name one of them"):
        world.prompts(WorldPrompts(split="all"))


# -- constraints ---------------------------------------------------------------------------------

EXAMPLES = [
    (Constraint("begins", "indeed"), "Indeed, yes.", "Yes, indeed."),
    (Constraint("ends", "amen"), "Yes amen.", "Amen, yes."),
    (Constraint("sentences", "2"), "Yes. That is all.", "Yes. That is all. Ask me again."),
    (Constraint("numbered", "2"), "1. Yes.\n2. No.", "1. Yes.\n3. No."),
    (Constraint("numbered", "2"), "1. Yes.\n2. No.\n", "Sure:\n1. Yes.\n2. No."),
    (Constraint("contains", "moon"), "The Moon.", "The moons."),
    (Constraint("avoids", "the"), "Other things.", "All the things."),
    (Constraint("capitals"), "YES, IT DOES.", "YES, it does."),
    (Constraint("twice"), "Yes. Yes.", "Yes. Yes. Yes."),
    (Constraint("one_word"), "Yes.", "Yes, yes."),
    (Constraint("max_words", "3"), "It is red.", "It is not red."),
    (Constraint("quoted"), '"Yes."', '"Yes.'),
    (Constraint("json"), '{"answer": "Yes"}', '{"answer": "Yes"} That is all.'),
    (Constraint("json"), '{"answer": 1}', '"yes"'),
]


@pytest.mark.parametrize(("constraint", "good", "bad"), EXAMPLES)
def test_a_constraint_tells_obedience_from_disobedience(constraint, good, bad):
    assert obeys(good, constraint)
    assert not obeys(bad, constraint)


def test_examples_cover_every_constraint():
    assert {e[0].kind for e in EXAMPLES} == set(constraints.PHRASES)


def test_an_empty_response_obeys_nothing():
    assert not any(obeys("", e[0]) or obeys(" ... ", e[0]) for e in EXAMPLES)


def test_an_unknown_constraint_is_refused():
    with pytest.raises(ValueError, match="a constraint is one of .*; got 'rhymes'. Name one"):
        obeys("text", Constraint("rhymes"))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_constraints_of_one_prompt_come_from_different_groups(seed, count):
    drawn = constraints.draw_constraints(random.Random(seed), count)
    groups = [g for c in drawn for g, kinds in constraints.GROUPS.items() if c.kind in kinds]
    assert len(drawn) == len(set(groups)) == count


# -- the verifier --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60), st.sampled_from(ROWS), st.booleans())
def test_any_text_gets_a_score_from_one_to_ten_and_strict_implies_loose(text, prompt, done):
    verdict = world.verify(text, prompt, is_completed=done)
    assert 1 <= verdict.score <= 10
    assert verdict.loose or not verdict.strict
    assert verdict.held == 1.0 or not verdict.strict


def test_the_rubric_adds_up_as_documented():
    asked = row(
        Constraint("begins", "indeed"), Constraint("ends", "amen"), references=["Dorn"],
        rivals=["Velt"],
    )  # fmt: skip
    points = {
        "Indeed, Dorn amen.": 10,
        "Indeed, Dorn.": 8,
        "Indeed, Velt amen.": 7,
        "Indeed, Dorn Velt amen.": 7,
        "Dorn.": 6,
        "Velt.": 3,
        "": 1,
        "Indeed, Dorn amen. Question: amen.": 7 + 2,
    }
    assert {t: world.verify(t, asked).score for t in points} == points
    assert world.verify("Indeed, Dorn amen.", asked, is_completed=False).score == 9


def test_repetition_is_allowed_once_more_where_it_was_asked_for():
    said = "one two three four. " * 2
    assert world.verify(said, row()).repeats
    assert not world.verify(said, row(Constraint("twice"))).repeats
    assert world.verify("one two three four. " * 3, row(Constraint("twice"))).repeats


def test_loose_forgives_a_first_or_last_sentence():
    asked = row(Constraint("begins", "indeed"))
    late = world.verify("Well. Indeed, Dorn.", asked)
    assert (late.strict, late.loose) == (False, True)
    assert "Indeed, Dorn." in verifier.variants("Well. Indeed, Dorn.")


# -- tokenizers ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_a_tokenizer_encodes_any_text_and_gives_it_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_the_chat_template_marks_the_answer_with_its_end(tokenizer):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    out = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    marked = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == "Yes.<|end|>"
    assert marked[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_chat_template_refuses_an_unknown_role(tokenizer):
    with pytest.raises(Exception, match="role must be system, user or assistant; got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_the_two_tokenizers_differ_and_unknown_names_are_refused(tokenizer):
    other = world.train_tokenizer("b", SMALL, documents_read=3000)
    assert len(other) == tokens.VOCABULARY["b"] < len(tokenizer)
    assert other.get_vocab() != tokenizer.get_vocab()
    with pytest.raises(ValueError, match=r"tokenizer must be one of \['a', 'b'\]; got 'c'"):
        world.train_tokenizer("c", SMALL)


def test_training_a_tokenizer_again_gives_the_same(tokenizer):
    again = world.train_tokenizer("a", SMALL, documents_read=3000)
    assert json.loads(again.backend_tokenizer.to_str()) == json.loads(
        tokenizer.backend_tokenizer.to_str()
    )
