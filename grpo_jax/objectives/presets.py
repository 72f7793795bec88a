"""Published methods, each a combination of choices. This file has the two recipes, and methods that differ in how
rewards become advantages or in which responses count; `presets_of_ratios.py` has the others.

A preset's docstring gives its source, what is maximised for each token, and how tokens are weighted. r is the ratio of
the policy to the policy when the batch was made (or to the sampler, where it says so), A the advantage, R a reward, and
sg stops the gradient. Where a paper leaves a number open, or the number is not from the paper, the docstring says so.
"""

from typing import Literal

from grpo_jax.objectives.advantages import (
    BY_BATCH,
    CENTERED,
    STANDARD,
    Advantage,
    EachPart,
    GroupMean,
    GroupStd,
    GroupSteps,
    Leader,
    PassAtK,
    ReturnToGo,
    Signed,
    Whitened,
    greedy_answer,
    group_mean,
    leave_one_out,
    length_weighted,
    lively_share,
    one,
    outcome_at_end,
    unscaled,
)
from grpo_jax.objectives.corrections import TokenMask, TokenTruncation
from grpo_jax.objectives.kl import ESTIMATORS, Reference, k1, k2, k3, kl_term
from grpo_jax.objectives.objective import Objective
from grpo_jax.objectives.selection import (
    Best,
    LargestAdvantages,
    MostVaried,
    brevity,
    ended,
    lively,
    lively_in_parts,
    reward_per_token,
)
from grpo_jax.objectives.shaping import Brevity, Gate, SoftOverlong, nothing_for_truncated
from grpo_jax.objectives.surrogates import ClippedRatio, reinforce
from grpo_jax.objectives.weightings import FixedLength, sequence_mean, sequence_sum, token_mean

WEIGHTINGS = {"token_mean": token_mean, "sequence_mean": sequence_mean}
METRICS = {"brevity": brevity, "reward_per_token": reward_per_token}


def verifiable(
    clip_low: float = ClippedRatio.low,
    clip_high: float = 0.28,
    cap: float = 10.0,  # of the ratio, for negative advantages
    most: float = TokenTruncation.high,  # of the ratio of trainer to sampler that a token is weighted by
) -> Objective:
    """The default, for responses that are right or wrong: (R - group mean) / batch deviation. Groups whose rewards are
    all equal are left out of every mean, and a truncated response earns nothing: at most 0, which is taken for the
    worst reward. If wrong responses earn less than 0, shift the rewards or write `shaping: []`.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r at most `cap` where A < 0; every token counts the same
    """
    return Objective(
        BY_BATCH,
        ClippedRatio(clip_low, clip_high, cap),
        token_mean,
        shaping=(nothing_for_truncated,),
        select=(lively,),
        corrections=(TokenTruncation(most),),
    )


def rubric(
    clip: float = ClippedRatio.low,
    kl: float = 3e-3,
    refresh: int = 300,  # steps after which the present policy becomes the reference
    epsilon: float = 0.1,  # added to each criterion's deviation, so that a judge's noise is not scaled up
    gate: tuple[int, ...] = (),  # positions of rewards that multiply all others: rules that must hold
    length_penalty: float = 0.0,  # that the longest possible response gets, times the mean reward of its group
) -> Objective:
    """For open responses that a judge scores by several criteria: each criterion has an advantage of its own, and the
    advantages are added up (GDPO). A small KL term keeps the policy near an earlier one.

    min(r A, clip(r, 1 - clip, 1 + clip) A) - kl k2; every token counts the same
    """
    gates = (Gate(gate),) if gate else ()
    return Objective(
        Whitened(EachPart(Advantage(group_mean, GroupStd(epsilon)))),
        ClippedRatio(clip, clip),
        token_mean,
        shaping=(*gates, Brevity(length_penalty)) if length_penalty else gates,
        select=(lively_in_parts,),
        kl=kl_term(kl, k2, reference=Reference(refresh)),
    )


def grpo(
    clip: float = ClippedRatio.low,
    kl: float = 0.04,  # coefficient; 0 keeps no reference policy at all
    kl_estimator: Literal["k1", "k2", "k3", "k3+"] = "k3",
    kl_place: Literal["loss", "reward"] = "loss",
) -> Objective:
    """GRPO as published in DeepSeekMath (arXiv:2402.03300, equation 3). The paper leaves the clip range open.

    min(r A, clip(r, 1 - clip, 1 + clip) A) - kl k3, A = (R - group mean) / group deviation; mean over each response
    """
    pull = kl_term(kl, ESTIMATORS[kl_estimator], place=kl_place)
    return Objective(STANDARD, ClippedRatio(clip, clip), sequence_mean, kl=pull)


def grpo_process(clip: float = ClippedRatio.low, kl: float = 0.04) -> Objective:
    """GRPO with process supervision (DeepSeekMath, arXiv:2402.03300, section 4.1.3): rewards of steps.

    As GRPO, with A of a token the sum, over its own step and the later ones, of (R of the step - mean of the group's
    steps) / their deviation
    """
    return Objective(ReturnToGo(GroupSteps()), ClippedRatio(clip, clip), sequence_mean, kl=kl_term(kl, k3))


def dr_grpo(
    clip: float = ClippedRatio.low,
    length: int | None = None,  # what every response is divided by, in tokens; null: rollout.max_tokens
) -> Objective:
    """Dr. GRPO (arXiv:2503.20783): no division by the group's deviation nor by the response's length.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = R - group mean; sum over each response / length

    The mean contains the response's own reward, so A = (G - 1)/G (R - mean of the others), G responses to each prompt:
    the expected gradient is (G - 1)/G times that of the expected reward (7/8 for 8), which the learning rate absorbs.
    `advantage: {center: leave_one_out, scale: unscaled}` has a factor of one.
    """
    return Objective(CENTERED, ClippedRatio(clip, clip), FixedLength(length))


def dapo(
    clip_low: float = ClippedRatio.low,
    clip_high: float = 0.28,
    cap: float | None = None,  # of the ratio where A < 0 (dual clip), which is not in the paper
    overlong: float = 0.0,  # last share of max_tokens in which length is punished; the paper's is 0.2
    filter_truncated: bool = False,  # whether truncated responses are left out of the loss (overlong filtering)
) -> Objective:
    """DAPO (arXiv:2503.14476): a higher upper clip bound, and every token counts the same; no KL. Its dynamic sampling
    is train.resample.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), A = (R - group mean) / group deviation; every token the same

    Every token of the batch, as in TRL and verl. The paper divides by the tokens of each group, so that
    every prompt counts the same: `weighting: prompt_mean`.
    """
    return Objective(
        STANDARD,
        ClippedRatio(clip_low, clip_high, cap),
        token_mean,
        shaping=(SoftOverlong(overlong),) if overlong else (),
        prune=(ended,) if filter_truncated else (),
    )


def lite_ppo(clip: float = ClippedRatio.low) -> Objective:
    """Lite PPO (arXiv:2508.08221): the group's mean, the batch's deviation.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = (R - group mean) / batch deviation; every token counts the same
    """
    return Objective(BY_BATCH, ClippedRatio(clip, clip), token_mean)


def rloo(kl: float = 0.03) -> Objective:
    """REINFORCE leave-one-out (arXiv:2402.14740): the others of the group are the baseline.

    A log pi, A = R - kl k1 - mean of the others; sum over each response
    """
    return Objective(
        Advantage(leave_one_out, unscaled),
        reinforce,
        sequence_sum,
        anchor="current",
        kl=kl_term(kl, k1, place="reward"),
    )


def reinforce_pp(clip: float = ClippedRatio.low, kl: float = 1e-3) -> Objective:
    """REINFORCE++ (arXiv:2501.03262): no groups; the return of each token, whitened over the batch's tokens.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = whitened sum of later rewards, each minus kl k1; every token the same
    """
    return Objective(
        Whitened(ReturnToGo(outcome_at_end), "token"),
        ClippedRatio(clip, clip),
        token_mean,
        kl=kl_term(kl, k1, place="token_reward"),
    )


def reinforce_pp_baseline(clip: float = ClippedRatio.low, kl: float = 1e-3) -> Objective:
    """REINFORCE++ with a group baseline (arXiv:2501.03262).

    min(r A, clip(r, 1 - clip, 1 + clip) A) - kl k2, A = R - group mean, whitened over tokens; every token the same
    """
    return Objective(Whitened(CENTERED, "token"), ClippedRatio(clip, clip), token_mean, kl=kl_term(kl, k2))


def prorl_v2(
    clip_low: float = ClippedRatio.low, clip_high: float = 0.27, kl: float = 1e-4, refresh: int = 300
) -> Objective:
    """ProRL v2: long training with a reference that is reset; truncated responses earn nothing. The published runs
    reset every 200 to 500 steps, or when KL jumps or validation stalls, and divide by the deviation of the centred
    rewards.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) - kl k2, A = (R - group mean) / batch deviation; every token the
    same; tokens whose ratio of trainer to sampler is not between 0.5 and 5 are left out
    """
    return Objective(
        BY_BATCH,
        ClippedRatio(clip_low, clip_high),
        token_mean,
        shaping=(nothing_for_truncated,),
        corrections=(TokenMask(),),
        kl=kl_term(kl, k2, reference=Reference(refresh)),
    )


def remax(kl: float = 0.0) -> Objective:
    """ReMax (arXiv:2310.10505): the baseline is the reward of the greedy response.

    A log pi, A = R - kl k1 - R of the greedy response; sum over each response
    """
    return Objective(
        Advantage(greedy_answer, unscaled),
        reinforce,
        sequence_sum,
        anchor="current",
        kl=kl_term(kl, k1, place="reward"),
        greedy_baseline=True,
    )


def opo() -> Objective:
    """OPO (arXiv:2505.23585): the baseline with the least variance, if the squared norm of a response's gradient
    is proportional to its length. Exactly on-policy: use one minibatch.

    A log pi, A = R - mean of R weighted by length; every token counts the same
    """
    return Objective(Advantage(length_weighted, unscaled), reinforce, token_mean, anchor="current")


def gpg() -> Objective:
    """GPG (arXiv:2504.02546): the plain policy gradient, scaled up to make up for groups whose rewards are
    all equal and that give no gradient.

    A log pi, A = (R - group mean) x groups / groups whose rewards differ; every token counts the same
    """
    return Objective(Advantage(group_mean, lively_share), reinforce, token_mean, anchor="current")


def maxrl() -> Objective:
    """MaxRL (arXiv:2602.02710): hard prompts count more, as for maximum likelihood. Rewards are 0 or 1, and a truncated
    response earns nothing.

    A log pi, A = (R - group mean) / group mean; every token counts the same

    With p the probability of a right response, the log-likelihood is log p = -((1 - p) + (1 - p)^2 / 2 + ...). The
    expected gradient is that of the first G - 1 terms, for G responses: (1 - (1 - p)^(G - 1)) / p times that of p. It
    is not that of G terms, because a group that is all wrong has no gradient.
    """
    return Objective(
        Advantage(group_mean, GroupMean()), reinforce, token_mean, anchor="current", shaping=(nothing_for_truncated,)
    )


def passk_leader(clip_low: float = ClippedRatio.low, clip_high: float = 0.28) -> Objective:
    """Pass@k by the leader (arXiv:2503.19595): only the best response of a group learns. The clip range is DAPO's.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), A = best R - second best R; every token counts the same
    """
    return Objective(Leader(), ClippedRatio(clip_low, clip_high), token_mean)


def passk(k: int = PassAtK.k, clip_low: float = ClippedRatio.low, clip_high: float = 0.28) -> Objective:
    """Pass@k in closed form (arXiv:2508.10751): the best of k responses counts. Rewards are right or wrong.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), A of a response as one of k; every token counts the same
    """
    return Objective(PassAtK(k), ClippedRatio(clip_low, clip_high), token_mean)


def nsr(positive: float = Signed.positive, clip: float = ClippedRatio.low) -> Objective:
    """Weighted REINFORCE (arXiv:2506.01347): mostly away from wrong responses; with `positive` 0, only that.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = positive if right, -1 if wrong; every token counts the same
    """
    return Objective(Signed(positive), ClippedRatio(clip, clip), token_mean)


def gdpo(clip: float = ClippedRatio.low) -> Objective:
    """GDPO (arXiv:2601.05242): each reward part is compared within its group by itself.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = sum of weights x (part - group mean) / group deviation, whitened over
    the batch; every token counts the same
    """
    return Objective(Whitened(EachPart(STANDARD)), ClippedRatio(clip, clip), token_mean)


def gfpo(
    keep: int = 8,  # responses of each group
    metric: Literal["brevity", "reward_per_token"] = "brevity",
    clip: float = ClippedRatio.low,
) -> Objective:
    """GFPO (arXiv:2508.09726): more responses are sampled than learned from, for short reasoning. `keep` is ours.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = (R - mean) / deviation of the `keep` responses of the group with the
    largest metric; the other responses do not count; every token counts the same
    """
    return Objective(STANDARD, ClippedRatio(clip, clip), token_mean, select=(Best(keep, METRICS[metric]),))


def pods(keep: int = 4, clip: float = ClippedRatio.low) -> Objective:
    """PODS (arXiv:2504.13818): learns from the responses of a group whose rewards have the largest variance. `keep` is
    ours.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = (R - mean) / deviation of the `keep` responses of the group; the other
    responses do not count; mean over each response
    """
    return Objective(STANDARD, ClippedRatio(clip, clip), sequence_mean, select=(MostVaried(keep),))


def cppo(keep: int = 2, clip: float = ClippedRatio.low, kl: float = 0.04) -> Objective:
    """CPPO (arXiv:2503.22342): GRPO that learns from the responses of a group with the largest absolute advantages
    alone. 2 of 16 is best in the paper's runs on GSM8K; its filling of freed places with more prompts is left out.

    min(r A, clip(r, 1 - clip, 1 + clip) A) - kl k3, A = (R - group mean) / group deviation, for the `keep` responses
    of the group with the largest |A|; mean over each response
    """
    prune = (LargestAdvantages(keep),)
    return Objective(STANDARD, ClippedRatio(clip, clip), sequence_mean, prune=prune, kl=kl_term(kl, k3))


def likelihood(weighting: Literal["token_mean", "sequence_mean"] = "token_mean") -> Objective:
    """The log-likelihood of given answers: supervised fine-tuning, whose loss is the cross-entropy of their tokens.

    log p of each token, whatever the response earns; every token counts the same, or every answer
    """
    return Objective(one, reinforce, WEIGHTINGS[weighting], anchor="current")
