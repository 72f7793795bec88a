"""Published methods, each a combination: what differs from its neighbour is what the arguments say. Here are the two
recipes, and methods that differ in how rewards become advantages; `presets_of_ratios.py` has the others.

A preset's docstring is its source, what is maximised for each token, and how tokens are weighed. r is the ratio of the
policy to what it was when the batch was prepared (to the sampler, where that is said), A the advantage, R a reward, sg
stops the gradient. Where a paper leaves a number open, or the number is not from the paper, the docstring says so.
"""

from typing import Literal

from grpo_jax.objectives.advantages import (
    Advantage,
    BatchStd,
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
    outcome_at_end,
    unscaled,
)
from grpo_jax.objectives.corrections import TokenMask, TokenTruncation
from grpo_jax.objectives.objective import Objective
from grpo_jax.objectives.penalties import ESTIMATORS, KL, Reference, k1, k2, k3
from grpo_jax.objectives.shaping import SoftOverlong, lively, lively_in_parts, nothing_for_truncated
from grpo_jax.objectives.surrogates import ClippedRatio, reinforce
from grpo_jax.objectives.weightings import FixedLength, sequence_mean, sequence_sum, token_mean

CENTERED, STANDARD = Advantage(group_mean, unscaled), Advantage(group_mean, GroupStd())
BY_BATCH = Advantage(group_mean, BatchStd())


def penalty(coefficient: float, *kind, **more) -> KL | None:
    """A KL term; none at all for a coefficient of 0, so that no reference is kept."""
    return KL(coefficient, *kind, **more) if coefficient else None


def verifiable(
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    cap: float = 10.0,  # of the ratio, for negative advantages
    most: float = 2.0,  # that a token may weigh for being likelier to the trainer than to the sampler
) -> Objective:
    """The default, for answers that are right or wrong: (R - group mean) / batch deviation; groups that agree are left
    out of every mean; a truncated answer is worth nothing.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r at most `cap` where A < 0; every token counts the same
    """
    return Objective(
        BY_BATCH,
        ClippedRatio(clip_low, clip_high, cap),
        token_mean,
        shaping=(nothing_for_truncated,),
        select=(lively,),
        correction=TokenTruncation(most),
    )


def rubric(
    clip: float = 0.2,
    kl: float = 3e-3,
    refresh: int = 300,  # steps after which the present policy is the one to stay close to
    epsilon: float = 0.1,  # added to each criterion's deviation: a judge's noise, not the answers' differences
) -> Objective:
    """For open answers that a judge scores by several criteria: each is compared within its group by itself, then they
    are added up (GDPO); a small KL term keeps the language.

    min(r A, clip(r, 1 - clip, 1 + clip) A) - kl k2; every token counts the same
    """
    return Objective(
        Whitened(EachPart(Advantage(group_mean, GroupStd(epsilon)))),
        ClippedRatio(clip, clip),
        token_mean,
        select=(lively_in_parts,),
        kl=penalty(kl, k2, reference=Reference(refresh)),
    )


def grpo(
    clip: float = 0.2,
    kl: float = 0.04,  # coefficient; 0 keeps no reference policy at all
    kl_estimator: Literal["k1", "k2", "k3", "k3+"] = "k3",
    kl_place: Literal["loss", "reward"] = "loss",
) -> Objective:
    """GRPO as published in DeepSeekMath (arXiv:2402.03300, equation 3). The paper leaves the clip range open.

    min(r A, clip(r, 1 - clip, 1 + clip) A) - kl k3, A = (R - group mean) / group deviation; mean over each answer
    """
    pull = penalty(kl, ESTIMATORS[kl_estimator], kl_place)
    return Objective(STANDARD, ClippedRatio(clip, clip), sequence_mean, kl=pull)


def grpo_process(clip: float = 0.2, kl: float = 0.04) -> Objective:
    """GRPO with process supervision (DeepSeekMath, arXiv:2402.03300, section 4.1.3): rewards of steps.

    GRPO's, with A of a token the sum, over its own step and those after it, of (R of the step - mean of the group's
    steps) / their deviation
    """
    return Objective(ReturnToGo(GroupSteps()), ClippedRatio(clip, clip), sequence_mean, kl=penalty(kl, k3))


def dr_grpo(
    clip: float = 0.2,
    length: int | None = None,  # what every answer is divided by, in tokens; null: rollout.max_tokens
) -> Objective:
    """Dr. GRPO (arXiv:2503.20783): no division by the group's deviation nor by the answer's length.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = R - group mean; sum over each answer / length
    """
    return Objective(CENTERED, ClippedRatio(clip, clip), FixedLength(length))


def dapo(
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    cap: float | None = None,  # of the ratio where A < 0 (dual clip), which is not in the paper
    overlong: float = 0.0,  # last share of max_tokens in which length is punished; the paper's is 0.2
) -> Objective:
    """DAPO (arXiv:2503.14476): a higher upper clip bound, and every token counts the same; no KL. Its dynamic sampling
    is train.resample.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), A = (R - group mean) / group deviation; every token the same
    """
    shaping = (SoftOverlong(overlong),) if overlong else ()
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high, cap), token_mean, shaping=shaping)


def lite_ppo(clip: float = 0.2) -> Objective:
    """Lite PPO (arXiv:2508.08221): the group's mean, the batch's deviation.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = (R - group mean) / batch deviation; every token counts the same
    """
    return Objective(BY_BATCH, ClippedRatio(clip, clip), token_mean)


def rloo(kl: float = 0.03) -> Objective:
    """REINFORCE leave-one-out (arXiv:2402.14740): the others of the group are the baseline.

    A log pi, A = R - kl k1 - mean of the others; sum over each answer
    """
    return Objective(
        Advantage(leave_one_out, unscaled), reinforce, sequence_sum, anchor="current", kl=penalty(kl, k1, "reward")
    )


def reinforce_pp(clip: float = 0.2, kl: float = 1e-3) -> Objective:
    """REINFORCE++ (arXiv:2501.03262): no groups; what is ahead of each token, whitened over the batch's tokens.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = whitened sum of later rewards, each less kl k1; every token the same
    """
    return Objective(
        Whitened(ReturnToGo(outcome_at_end), "token"),
        ClippedRatio(clip, clip),
        token_mean,
        kl=penalty(kl, k1, "token_reward"),
    )


def reinforce_pp_baseline(clip: float = 0.2, kl: float = 1e-3) -> Objective:
    """REINFORCE++ with a group baseline (arXiv:2501.03262).

    min(r A, clip(r, 1 - clip, 1 + clip) A) - kl k2, A = R - group mean, whitened over tokens; every token the same
    """
    return Objective(Whitened(CENTERED, "token"), ClippedRatio(clip, clip), token_mean, kl=penalty(kl, k2))


def prorl_v2(clip_low: float = 0.2, clip_high: float = 0.27, kl: float = 1e-4, refresh: int = 300) -> Objective:
    """ProRL v2: long training with a reference that is reset, and truncated answers that earn nothing. The published
    runs reset every 200 to 500 steps, or when KL jumps or validation stalls, and divide by the deviation of the centred
    rewards.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) - kl k2, A = (R - group mean) / batch deviation; every token the
    same; tokens whose ratio of trainer to sampler is not between 0.5 and 5 are left out
    """
    return Objective(
        BY_BATCH,
        ClippedRatio(clip_low, clip_high),
        token_mean,
        shaping=(nothing_for_truncated,),
        correction=TokenMask(0.5, 5.0),
        kl=penalty(kl, k2, reference=Reference(refresh)),
    )


def remax(kl: float = 0.0) -> Objective:
    """ReMax (arXiv:2310.10505): the baseline is the reward of the greedy answer.

    A log pi, A = R - kl k1 - R of the greedy answer; sum over each answer
    """
    return Objective(
        Advantage(greedy_answer, unscaled),
        reinforce,
        sequence_sum,
        anchor="current",
        kl=penalty(kl, k1, "reward"),
        greedy_baseline=True,
    )


def opo() -> Objective:
    """OPO (arXiv:2505.23585): the baseline of least variance where a long answer has a long gradient. Exactly
    on-policy: use one minibatch.

    A log pi, A = R - mean of R weighted by length; every token counts the same
    """
    return Objective(Advantage(length_weighted, unscaled), reinforce, token_mean, anchor="current")


def gpg() -> Objective:
    """GPG (arXiv:2504.02546): the plain policy gradient, made up for groups that agree.

    A log pi, A = (R - group mean) x groups / groups that do not agree; every token counts the same
    """
    return Objective(Advantage(group_mean, lively_share), reinforce, token_mean, anchor="current")


def maxrl() -> Objective:
    """MaxRL (arXiv:2602.02710): hard prompts count more, as towards maximum likelihood. Rewards of 0 and 1;
    a truncated answer is worth nothing.

    A log pi, A = (R - group mean) / group mean; every token counts the same
    """
    return Objective(
        Advantage(group_mean, GroupMean()), reinforce, token_mean, anchor="current", shaping=(nothing_for_truncated,)
    )


def passk_leader(clip_low: float = 0.2, clip_high: float = 0.28) -> Objective:
    """Pass@k by the leader (arXiv:2503.19595): only a group's best answer learns. The clip range is DAPO's.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), A = best R - second best R; every token counts the same
    """
    return Objective(Leader(), ClippedRatio(clip_low, clip_high), token_mean)


def passk(k: int = 4, clip_low: float = 0.2, clip_high: float = 0.28) -> Objective:
    """Pass@k in closed form (arXiv:2508.10751): the best of k answers counts. Rewards are right or wrong.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), A of an answer as one of k; every token counts the same
    """
    return Objective(PassAtK(k), ClippedRatio(clip_low, clip_high), token_mean)


def nsr(positive: float = 0.1, clip: float = 0.2) -> Objective:
    """Weighted REINFORCE (arXiv:2506.01347): mostly away from what is wrong. 0 is negative samples alone.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = positive if right, -1 if wrong; every token counts the same
    """
    return Objective(Signed(positive, -1.0), ClippedRatio(clip, clip), token_mean)


def gdpo(clip: float = 0.2) -> Objective:
    """GDPO (arXiv:2601.05242): each reward part is compared within its group by itself.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = sum of weights x (part - group mean) / group deviation, whitened over
    the batch; every token counts the same
    """
    return Objective(Whitened(EachPart(STANDARD)), ClippedRatio(clip, clip), token_mean)
