"""Rewards to and from TRL: texts and conversations, references, columns, and a step of GRPO."""

import asyncio
import functools

import gymnasium as gym
import pytest
import torch

import text_gym
from tests.helpers.batches import batch_of
from text_gym.errors import DataError, OptionError, RewardError
from text_gym.rewards import Scorer
from text_gym.rewards.trl import HashedWords, from_trl, text_of, trl_records, trl_reward


@pytest.fixture
def asked(write):
    """A task with two prompts, one of them with two references, and a column."""
    path = write(
        "asked.jsonl",
        '{"prompt": "who is there", "references": ["it is me", "me"], "level": 1}\n'
        '{"prompt": "what is it", "reference": "a cat", "level": 2}\n',
    )
    return text_gym.make_task(path, valid=0.0, test=0.0)


def test_a_task_gives_prompts_their_references(asked):
    reward = trl_reward("exact_match", asked)
    prompts = ["who is there", "who is there", "what is it", "what is it"]
    assert reward(prompts=prompts, completions=["me", "a cat", "a cat", " a  cat\n"]) == [1, 0, 1, 1]
    assert reward.__name__ == "exact_match"
    held_out = text_gym.make_task("answers").test[0]
    answers = text_gym.make_task("answers")
    question, right = answers.decode(held_out.prompt), answers.decode(held_out.references[0])
    assert trl_reward("exact_match", "answers")(prompts=[question] * 2, completions=[right, "a"]) == [1, 0]


def test_a_column_of_references_goes_before_the_tasks_own(asked):
    prompts, completions = ["who is there", "what is it"], ["me", "a cat"]
    reward = trl_reward("exact_match", asked)
    assert reward(prompts=prompts, completions=completions, references=[["it"], ["a cat", "it"]]) == [0, 1]
    assert reward(prompts=prompts, completions=completions, reference=["me", "me"]) == [1, 0]
    named = trl_reward("exact_match", asked, references="answer")
    assert named(prompts=prompts, completions=completions, answer=["a cat", ["it", "a cat"]], reference="xy") == [0, 1]
    with pytest.raises(DataError, match=r"no column 'answer'\. Did you mean 'answers'"):
        named(prompts=prompts, completions=completions, answers=["me", "me"])
    for wrong in ("me", [1, 2], [None, None]):
        with pytest.raises(DataError, match="a text or a list of texts for each completion"):
            reward(prompts=prompts, completions=completions, references=wrong)


def test_a_prompt_without_references_is_an_error_where_they_are_needed(asked):
    with pytest.raises(RewardError, match="'exact_match' needs references"):
        trl_reward("exact_match", asked)(prompts=["it is"], completions=["me"])
    assert trl_reward("length", asked)(prompts=["it is"], completions=["me me"]) == [2]
    with pytest.raises(RewardError, match="needs references"):
        trl_reward("rouge")(prompts=["it is"], completions=["me"])


def test_without_a_task_words_are_what_white_space_separates():
    reward = trl_reward({"exact_match": 1.0, "length": 0.1, "repetition": 0.5})
    assert reward(completions=["any words", "any any"], reference=["any  words", "x"]) == pytest.approx([1.2, -0.05])
    assert reward.__name__ == "exact_match+length+repetition"
    noise = trl_reward("random")
    first = noise(completions=["a b", "c"])
    assert noise(completions=["d e f", "c", "a b"])[1:] == first[::-1]
    assert trl_reward("bleu(n=1)")(completions=["a b"], reference=["a c"]) == [0.5]


def test_unknown_words_never_count_as_right(asked, grammar):
    assert asked.vocab.unk is not None
    reward = trl_reward("exact_match", asked)
    assert reward(prompts=["what is it"] * 3, completions=["a cat zzz", "zzz a cat", "<eos> a cat"]) == [0, 0, 0]
    answers = text_gym.make_task("answers")
    assert answers.vocab.unk is None
    reward = trl_reward("exact_match", answers)
    example = answers.train[0]
    question, right = answers.decode(example.prompt), answers.decode(example.references[0])
    completions = [right, f"{right} zzz", f"zzz {right}", f"{right} <eos>", ""]
    assert reward(prompts=[question] * 5, completions=completions)[:3] == [1, 0, 0]
    valid = trl_reward("validity", grammar)
    assert valid(completions=["the dogs run", "the dogs run zzz", "zzz", "", "the dogs run " * 9]) == [1, 0, 0, 0, 0]
    with pytest.raises(DataError, match="'zzz' is not in this vocabulary"):
        trl_reward("likelihood", "oracle(vocab_size=20, max_length=3)")(completions=["1 2 zzz"])


def test_rewards_of_texts_see_what_was_written(asked):
    seen = {}

    def watch(completions, prompts, references, level, trainer_state, **others):
        seen.update(locals())
        return [0.0] * len(completions)

    reward = trl_reward([watch, "rouge"], asked)
    written = ["It's  me!\n", "zzz"]
    scores = reward(
        completions=written, prompts=["Who, me?", "what is it"], references=[["it's me"], ["zzz"]],
        completion_ids=[[1], [2]], level=[3, 4], trainer_state="state", others=[5, 6],
    )  # fmt: skip
    assert scores == [1, 1]
    assert (seen["completions"], seen["prompts"]) == (written, ["Who, me?", "what is it"])
    assert (seen["references"], seen["level"], seen["trainer_state"]) == ([["it's me"], ["zzz"]], [3, 4], "state")
    assert seen["others"]["others"] == [5, 6]

    def near(completions, answer):
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    for task in (asked, None):
        assert trl_reward({near: 2.0}, task)(completions=["7", "8"], answer=["7", "7"]) == [2, 0]
    with pytest.raises(RewardError, match="missing 1 required positional argument: 'answer'"):
        trl_reward(near)(completions=["7"])


def test_prompts_and_columns_are_as_many_as_completions(asked):
    for task in (asked, None):
        reward = trl_reward("length", task)
        for name in ("prompts", "reference", "level"):
            with pytest.raises(RewardError, match=f"'{name}' has 3 rows for 2 completions"):
                reward(completions=["me", "a cat"], **{name: ["x"] * 3})
        assert reward(completions=["me", "a cat"], prompts=["x"] * 2, level=[1, 2], log_extra=None) == [1, 2]


def test_where_no_reward_applies_trl_is_told_so(asked):
    def only_cats(completions, **columns):
        return [1.0 if "cat" in text else None for text in completions]

    def only_short(completions, **columns):
        return [None if len(text) > 2 else 0.0 for text in completions]

    texts = ["a cat", "dogs", "me"]
    for task in (asked, None):
        assert trl_reward(only_cats, task)(completions=texts) == [1, None, None]
        assert trl_reward({only_cats: 2.0, only_short: 1.0}, task)(completions=texts) == [2, None, 0]
        assert trl_reward([only_cats, "length"], task)(completions=texts) == [3, 1, 1]
        assert trl_reward(only_cats, task)(completions=[]) == []


def test_words_are_remembered_no_longer_than_a_call():
    seen, asked = [], []

    class Read(text_gym.Reward):
        def score(self, batch):
            seen.append([batch.vocab.decode(row) for row in batch.tokens])
            asked.append([batch.vocab.decode(example.prompt) for example in batch.examples])
            assert batch.vocab.decode_rows(batch.tokens, batch.content_lengths) == batch.texts
            return [0.0] * len(batch)

    reward = trl_reward(Read())
    reward(completions=["a b", "c"], prompts=["d", "e"])
    reward(completions=["f"], prompts=["a"])
    assert (seen, asked) == ([["a b", "c"], ["f"]], [["d", "e"], ["a"]])
    assert reward.task.vocab.decode(HashedWords().encode("f a")) == "f a"
    for word in "bcde":
        with pytest.raises(KeyError):
            reward.task.vocab.decode(HashedWords().encode(word))


def test_a_part_of_the_batch_keeps_its_texts(asked):
    seen = []

    class Half(text_gym.Reward):
        def score(self, batch):
            part = batch.take([1, 0])
            seen.append((part.texts, part.prompts, part.references, part.columns, len(part.tokens)))
            assert batch.take([False, True]).texts == ["zzz"]
            return [0.0] * len(batch)

    trl_reward(Half(), asked)(completions=["x  y", "zzz"], prompts=["p q", "r"], reference=["1", "2"], state=7)
    assert seen == [(["zzz", "x  y"], ["r", "p q"], [["2"], ["1"]], {"reference": ["2", "1"], "state": 7}, 2)]


def test_conversations(asked):
    def user(text):
        return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]

    right = {"role": "assistant", "content": "me"}
    completions = [
        [right],
        [{"role": "assistant", "content": "it"}, {"role": "tool", "content": "a"}, right],
        [{"role": "assistant", "content": [{"type": "text", "text": "it is "}, {"type": "text", "text": "me"}]}],
        [{"role": "assistant", "content": None}],
        [],
    ]  # fmt: skip
    reward = trl_reward("exact_match", asked)
    assert reward(prompts=[user("who is there")] * 5, completions=completions) == [1, 1, 1, 0, 0]
    with pytest.raises(DataError, match="a text or a list of messages"):
        reward(prompts=["who is there"], completions=[7])
    assert text_of([{"content": "me"}], "assistant") == "me"


def test_the_mean_of_each_of_several_rewards_is_logged(asked):
    logged = {}
    reward = trl_reward({"length": 1.0, "repetition": 1.0}, asked, name="mine")
    reward(completions=["me me", "a"], log_metric=logged.__setitem__)
    assert logged == {"mine/length": 1.5, "mine/repetition": -0.25}
    trl_reward("length", asked, name="mine")(completions=["me"], log_metric=lambda *_: pytest.fail("logged"))


def test_what_does_not_fit_is_refused_when_the_function_is_made(grammar, asked):
    with pytest.raises(RewardError, match="task 'grammar' has no prompts"):
        trl_reward("exact_match", grammar)
    with pytest.raises(OptionError, match="is not a reward"):
        trl_reward(None)
    with pytest.raises(OptionError, match="has none; use a task with prompts"):
        trl_records(grammar)


def test_records_are_the_prompts_with_all_that_the_data_say(asked):
    assert trl_records(asked) == [
        {"prompt": "who is there", "references": ["it is me", "me"], "level": 1},
        {"prompt": "what is it", "references": ["a cat"], "level": 2},
    ]
    assert trl_records(asked, conversational=True)[1]["prompt"] == [{"role": "user", "content": "what is it"}]
    assert len(trl_records("answers", "test")) == 200


# TRL's functions as rewards.


def paid(reward, task, *texts):
    return Scorer(reward, task)(batch_of(task, *texts, examples=[task.train[0]] * len(texts))).total.tolist()


def test_async_functions(asked):
    async def slow(completions, **columns):
        await asyncio.sleep(0)
        return [len(text) for text in completions]

    class Slow:
        async def __call__(self, prompts, completions, **columns):
            return await slow(completions)

    for function in (slow, Slow(), functools.partial(slow, unused=1)):
        assert paid(function, asked, "me", "a cat") == [2, 5]
    assert Scorer(functools.partial(slow, unused=1), asked).rewards.keys() == {"slow"}

    async def in_a_loop():
        return paid(slow, asked, "me")

    assert asyncio.run(in_a_loop()) == [2]

    async def fails(completions):
        raise KeyError("no")

    with pytest.raises(RewardError, match="'fails' failed with KeyError"):
        paid(fails, asked, "me")


def test_what_trainers_pass(asked):
    def learned(completions, trainer_state, log_extra, log_metric, **columns):
        assert trainer_state is None
        log_extra("text", completions)
        log_metric("count", len(completions))
        return [None if text == "me" else 1.0 for text in completions]

    env = gym.make("TextGen-v0", task=asked, reward=learned)
    env.reset()
    assert env.step(asked.vocab.eos)[1] == 1
    assert paid(learned, asked, "me", "a cat") == [0, 1]


def test_functions_of_conversations(asked):
    seen = {}

    def polite(prompts, completions, level, **columns):
        seen.update(prompts=prompts, completions=completions, level=level, columns=columns)
        return [float("me" in messages[-1]["content"]) for messages in completions]

    reward = from_trl(polite, conversational=True, system="Be brief.")
    assert paid(reward, asked, "me", "a cat") == [1, 0]
    assert (
        seen["prompts"]
        == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "who is there"}]] * 2
    )
    assert seen["completions"][1] == [{"role": "assistant", "content": "a cat"}]
    assert (seen["level"], seen["columns"]["references"]) == ([1, 1], [["it is me", "me"]] * 2)
    assert list(Scorer(reward, asked).rewards) == ["polite"]
    assert paid(from_trl(lambda completions: [len(c) for c in completions], name="n"), asked, "me") == [2]
    with pytest.raises(OptionError, match="pass conversational=True"):
        from_trl(polite, system="Be brief.")
    back = trl_reward(reward, asked)
    assert back(prompts=["who is there"], completions=[[{"role": "assistant", "content": "me"}]], level=[3]) == [1]
    assert seen["level"] == [3]


def test_a_bare_function_of_conversations_is_told_how_it_is_wrapped(asked):
    def first(completions, **columns):
        return [float(completion[0]["content"] == "me") for completion in completions]

    def got(completions, **columns):
        return [float(completion[0].get("content") == "me") for completion in completions]

    for function in (first, got):
        for text in ("me", ""):
            words = rf"'{function.__name__}' failed with \w+: .*from_trl\(function, conversational=True\)"
            with pytest.raises(RewardError, match=words):
                paid(function, asked, text)
        assert paid(from_trl(function, conversational=True), asked, "me") == [1]
    with pytest.raises(RewardError, match=r"no such word'$"):
        paid("tests.helpers.own_rewards:fails", asked, "me")


def test_trls_own_function_of_conversations(asked):
    trl_rewards = pytest.importorskip("trl.rewards")
    function = trl_rewards.think_format_reward
    with pytest.raises(RewardError, match=r"'think_format_reward' failed .*conversational=True"):
        paid(function, asked, "me")
    assert paid(from_trl(function, conversational=True), asked, "me") == [0]


def test_cached_rewards_see_texts_and_columns(asked):
    seen = []

    def near(completions, answer):
        seen.extend(zip(completions, answer, strict=True))
        return [float(text == right) if text else None for text, right in zip(completions, answer, strict=True)]

    for task in (asked, None):
        seen.clear()
        reward = trl_reward(text_gym.make_reward(near, cached=True), task)
        for _ in range(2):
            given = {"completions": ["7", "7", "zzz", ""], "answer": ["7", "8", "8", "8"]}
            assert reward(**given) == [1, 0, 0, None]
        assert seen == [("7", "7"), ("7", "8"), ("zzz", "8"), ("", "8")]


@pytest.mark.filterwarnings(
    "ignore:.* is deprecated and will be removed in v6:FutureWarning:transformers"
)  # by TRL's use
def test_a_step_of_grpo_learns_from_our_numbers(answers, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *answers.vocab.tokens]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes, **special))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    seen = {}

    def watch(prompts, completions, references, **columns):
        seen.update(prompts=prompts, completions=completions, references=references)
        return [0.0] * len(completions)

    rewards = [trl_reward("exact_match", answers), trl_reward({"chrf": 1.0, "random": 0.5}, answers), watch]
    trainer = trl.GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=rewards,
        train_dataset=Dataset.from_list(trl_records(answers)),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, max_steps=1,
            per_device_train_batch_size=4, num_generations=4, max_completion_length=4, learning_rate=1e-2, seed=0,
            disable_tqdm=True,
        ),
    )  # fmt: skip
    trainer.train()
    logged = trainer.state.log_history[0]
    examples = [answers.train[answers.train.by_prompt[tuple(answers.encode(prompt))]] for prompt in seen["prompts"]]
    assert [[answers.decode(r) for r in example.references] for example in examples] == seen["references"]
    chrf = [
        text_gym.make_reward("chrf").compare(*row) for row in zip(seen["completions"], seen["references"], strict=True)
    ]
    noise = trl_reward("random", answers)(completions=seen["completions"])
    expected = torch.tensor([c + 0.5 * n for c, n in zip(chrf, noise, strict=True)])
    assert expected.std() > 0.01
    assert logged["rewards/chrf+random/mean"] == pytest.approx(float(expected.mean()), abs=1e-6)
    assert logged["rewards/exact_match/mean"] == pytest.approx(
        sum(c in r for c, r in zip(seen["completions"], seen["references"], strict=True)) / 4
    )
    assert logged["chrf+random/random"] == pytest.approx(sum(noise) / 4)
    after = model.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)
