"""Published methods that differ in what is made of a ratio, in which tokens learn, or in what is added to the loss.

Docstrings read as in `presets.py`.
"""

from grpo_jax.objectives.advantages import Signed, no_advantage
from grpo_jax.objectives.corrections import CovarianceClip, OffPolicyMask, TokenMask, TopCovariance, TopEntropy
from grpo_jax.objectives.objective import Objective
from grpo_jax.objectives.penalties import (
    Term,
    absolute_log_ratio,
    k3,
    squared_log_ratio,
    squared_sequence_log_ratio,
)
from grpo_jax.objectives.presets import BY_BATCH, CENTERED, STANDARD, penalty
from grpo_jax.objectives.ratios import BoundedProduct, sequence, sequence_product, sequence_token, token
from grpo_jax.objectives.shaping import lively
from grpo_jax.objectives.surrogates import (
    ClippedRatio,
    ClippedWeight,
    GammaWeight,
    GeometricClip,
    Interval,
    Listwise,
    SoftGate,
    TrustRegionKL,
    TrustRegionTV,
    importance,
    reinforce,
    tapered,
)
from grpo_jax.objectives.weightings import FixedLength, prompt_mean, sequence_mean, sequence_sum, token_mean


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
    """GSPO (arXiv:2507.18071): one length-normalised ratio for each answer.

    min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean log r); mean over each answer
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), sequence_mean, sequence)


def gspo_token(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
    """GSPO-token (arXiv:2507.18071): the answer's ratio, for advantages that may differ between tokens.

    min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = sg(exp(mean log r)) pi / sg(pi); mean over each answer
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), sequence_mean, sequence_token)


def luspo(clip_low: float = 2e-3, clip_high: float = 2.5e-3) -> Objective:
    """LUSPO (arXiv:2602.05261): GSPO in which an answer counts by its length.

    min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean log r); sum over each answer
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), sequence_sum, sequence)


def gmpo(clip: float = 0.4) -> Objective:
    """GMPO (arXiv:2507.20673): the geometric mean of the token ratios, each clipped in log space.

    A exp(mean of log r, clipped to `clip` on the side that A pulls to); mean over each answer
    """
    return Objective(STANDARD, GeometricClip(clip, clip), sequence_mean)


def cispo(low: float = 0.0, high: float = 5.0) -> Objective:
    """CISPO (MiniMax-M1, arXiv:2506.13585): clipped weights, so that no token loses its gradient. The paper has no
    lower bound and leaves the upper one open; 5 is what TRL takes for ScaleRL (arXiv:2510.13786).

    sg(clip(r, low, high)) A log pi; every token counts the same
    """
    return Objective(STANDARD, ClippedWeight(low, high), token_mean)


def scale_rl(high: float = 5.0) -> Objective:
    """ScaleRL (arXiv:2510.13786): CISPO by prompt, without groups that agree. Retiring solved prompts is train.retire.
    The paper divides by the deviation of the centred rewards, and compares with the sampler.

    sg(min(r, high)) A log pi, A = (R - group mean) / batch deviation; every prompt counts the same
    """
    return Objective(BY_BATCH, ClippedWeight(0.0, high), prompt_mean, select=(lively,))


def sapo(positive: float = 1.0, negative: float = 1.05) -> Objective:
    """SAPO (arXiv:2511.20347): a gate without an edge, narrower for negative advantages.

    A 4/t sigmoid(t (r - 1)), t by the sign of A; mean over each answer
    """
    return Objective(STANDARD, SoftGate(positive, negative), sequence_mean)


def dppo_tv(limit: float = 0.15, cap: float = 20.0) -> Objective:
    """DPPO with total variation (arXiv:2602.04879): a trust region of probabilities around the sampler.

    sg(min(r, cap)) A log pi unless |p - p of the sampler| > limit on the side that A pulls to; sum / max_tokens
    """
    return Objective(CENTERED, TrustRegionTV(limit, limit, cap), FixedLength(), anchor="sampler")


def dppo_kl(limit: float = 0.05, cap: float = 20.0) -> Objective:
    """DPPO with the KL of drawing a token or not, from the sampler to the policy (arXiv:2602.04879).

    sg(min(r, cap)) A log pi unless that KL > limit on the side that A pulls to; sum / max_tokens
    """
    return Objective(CENTERED, TrustRegionKL(limit, limit, cap), FixedLength(), anchor="sampler")


def icepop(low: float = 0.5, high: float = 5.0, clip_low: float = 0.2, clip_high: float = 0.28) -> Objective:
    """IcePop: tokens on which trainer and sampler disagree are left out. The rest is DAPO's.

    k min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), k = ratio of trainer to sampler if between low and high, else 0
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), token_mean, correction=TokenMask(low, high))


def deepseek_v3_2(clip: float = 0.2, kl: float = 1e-3, most: float = 0.5) -> Objective:
    """DeepSeek-V3.2 (arXiv:2512.02556): an unbiased KL, and no bad answers that the policy no longer gives. The paper
    leaves the numbers open.

    m min(r A, clip(r, 1 - clip, 1 + clip) A) - kl r k3, A = R - group mean, m = 0 where A < 0 and the answer's tokens
    are on average more than `most` nats less likely than when sampled; mean over each answer
    """
    pull = penalty(kl, k3, ratio=token)
    masks = (OffPolicyMask(most),)
    return Objective(CENTERED, ClippedRatio(clip, clip), sequence_mean, live_masks=masks, kl=pull)


def kimi_k1_5(tau: float = 0.1) -> Objective:
    """Kimi k1.5 (arXiv:2501.12599): mirror descent with a squared ratio of the whole answer. tau is ours.

    A log pi - tau/2 (log r of the answer)^2, A = R - group mean; sum over each answer
    """
    return Objective(CENTERED, reinforce, sequence_sum, terms=(Term(-tau, squared_sequence_log_ratio),))


def kimi_k2_5(low: float = 0.5, high: float = 2.0, tau: float = 1e-3) -> Objective:
    """Kimi K2.5 (arXiv:2602.02276): no gradient from rewards outside an interval, whatever A's sign. The numbers
    are ours.

    r A if low < r < high, less tau (log r)^2 everywhere, A = R - group mean; every token counts the same
    """
    return Objective(CENTERED, Interval(low, high), token_mean, terms=(Term(-2 * tau, squared_log_ratio),))


def vespo(
    power_positive: float = 2.0, rate_positive: float = 3.0, power_negative: float = 3.0, rate_negative: float = 2.0
) -> Objective:
    """VESPO (arXiv:2602.10693): a smooth weight by the ratio of the whole answer to the sampler.

    sg(exp(rate + power log W - rate W)) A log pi, W the product of the token ratios; every token counts the same
    """
    surrogate = GammaWeight(power_positive, rate_positive, power_negative, rate_negative)
    return Objective(STANDARD, surrogate, token_mean, BoundedProduct(), "sampler")


def topr() -> Objective:
    """TOPR (arXiv:2503.14286): bad answers count as far as the policy still gives them. The baseline and the
    sum are ours.

    sg(c) A log pi, c = 1 where A > 0, else the answer's ratio, at most 1; A = R - group mean; sum over each answer
    """
    return Objective(CENTERED, tapered, sequence_sum, sequence_product)


def top_entropy(share: float = 0.2, clip_low: float = 0.2, clip_high: float = 0.28) -> Objective:
    """The 80/20 rule (arXiv:2506.01939): only tokens of high entropy move the policy. The rest is DAPO's.

    DAPO's, for the `share` of the batch's tokens with the most entropy; every token counts the same
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), token_mean, masks=(TopEntropy(share),))


def clip_cov(share: float = 2e-4, low: float = 1.0, high: float = 5.0, clip: float = 0.2) -> Objective:
    """Clip-Cov (arXiv:2505.22617): a few tokens of large covariance of log-prob and advantage are left out.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = (R - group mean) / group deviation; every token counts the same
    """
    return Objective(STANDARD, ClippedRatio(clip, clip), token_mean, masks=(CovarianceClip(share, low, high),))


def kl_cov(share: float = 2e-4, coefficient: float = 1.0) -> Objective:
    """KL-Cov (arXiv:2505.22617): tokens of the largest covariance are held where they are.

    r A - coefficient |log r| for the `share` of tokens with the largest covariance; every token counts the same
    """
    term = Term(-coefficient, absolute_log_ratio, mask=TopCovariance(share))
    return Objective(STANDARD, importance, token_mean, terms=(term,))


def dro(beta: float = 1e-3) -> Objective:
    """DRO's loss (arXiv:2405.19107) by token, with the group's mean as the value and the policy of when the batch was
    prepared as the reference. beta is ours.

    A log pi - beta/2 (log r)^2, A = R - group mean; every token counts the same
    """
    return Objective(CENTERED, reinforce, token_mean, terms=(Term(-beta, squared_log_ratio),))


def real(temperature: float = 0.5, right: float = 0.5) -> Objective:
    """REAL (arXiv:2602.05630): right answers are told from wrong ones as by a classifier. Groups are not divided.

    -log(1 + sum over right of e^(-s/t)) - log(1 + sum over wrong of e^(s/t)), s = mean log r; mean over prompts
    """
    return Objective(Signed(1.0, -1.0, right), Listwise(temperature), sequence_mean, sequence)


def distillation(weight: float = 1.0) -> Objective:
    """On-policy distillation: towards a teacher's log-probs of the policy's own answers (sampled reverse KL). Rewards
    are watched and teach nothing.

    A log pi, A = weight (log-prob of the teacher - of the policy), token by token; every token counts the same
    """
    return Objective(no_advantage, reinforce, token_mean, distillation=weight)
