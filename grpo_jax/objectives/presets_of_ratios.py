"""Published methods that differ in what is made of a ratio, in which tokens learn, or in what is added to the loss.

Their docstrings are explained in `presets.py`.
"""

from grpo_jax.objectives.advantages import BY_BATCH, CENTERED, STANDARD, Signed, no_advantage
from grpo_jax.objectives.corrections import CovarianceClip, OffPolicyMask, TokenMask, TopCovariance, TopEntropy
from grpo_jax.objectives.kl import k3, kl_term
from grpo_jax.objectives.objective import Objective
from grpo_jax.objectives.ratios import BoundedProduct, sequence, sequence_product, sequence_token, token
from grpo_jax.objectives.selection import lively
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
from grpo_jax.objectives.terms import Term, absolute_log_ratio, squared_log_ratio, squared_sequence_log_ratio
from grpo_jax.objectives.weightings import FixedLength, prompt_mean, sequence_mean, sequence_sum, token_mean
from grpo_jax.ranges import check_range


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
    """GSPO (arXiv:2507.18071): one length-normalised ratio for each response.

    min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean log r); mean over each response

    With a mask, tokens that are left out still move, as they are in s (as in TRL); with `gspo_token` they do not.
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), sequence_mean, ratio=sequence)


def gspo_token(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
    """GSPO-token (arXiv:2507.18071): the response's ratio, for advantages that may differ between tokens.

    min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = sg(exp(mean log r)) pi / sg(pi); mean over each response
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), sequence_mean, ratio=sequence_token)


def luspo(clip_low: float = 2e-3, clip_high: float = 2.5e-3) -> Objective:
    """LUSPO (arXiv:2602.05261): GSPO in which each response is weighted by its length.

    min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean log r); sum over each response

    With a mask, tokens that are left out still move, as they are in s; with `ratio: sequence_token` they do not.
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), sequence_sum, ratio=sequence)


def gmpo(clip: float = GeometricClip.low) -> Objective:
    """GMPO (arXiv:2507.20673): the geometric mean of the token ratios, each clipped in log space.

    A exp(mean of log r, at most `clip` if A > 0 and at least -`clip` otherwise); mean over each response

    With a mask, the mean is over the tokens that are kept.
    """
    return Objective(STANDARD, GeometricClip(clip, clip), sequence_mean)


def cispo(low: float = ClippedWeight.low, high: float = ClippedWeight.high) -> Objective:
    """CISPO (MiniMax-M1, arXiv:2506.13585): clipped weights, so that no token loses its gradient. The paper has no
    lower bound and leaves the upper one open; 5 is what TRL takes for ScaleRL (arXiv:2510.13786).

    sg(clip(r, low, high)) A log pi; every token counts the same

    Every token of the batch, as in TRL and verl. The paper divides by the tokens of each group, so that every prompt
    counts the same: `weighting: prompt_mean`.
    """
    return Objective(STANDARD, ClippedWeight(low, high), token_mean)


def scale_rl(high: float = ClippedWeight.high) -> Objective:
    """ScaleRL (arXiv:2510.13786): CISPO by prompt, without groups whose rewards are all equal. Retiring solved prompts
    is train.retire. The paper divides by the deviation of the centred rewards, and compares with the sampler.

    sg(min(r, high)) A log pi, A = (R - group mean) / batch deviation; every prompt counts the same
    """
    return Objective(BY_BATCH, ClippedWeight(high=high), prompt_mean, select=(lively,))


def sapo(positive: float = SoftGate.positive, negative: float = SoftGate.negative) -> Objective:
    """SAPO (arXiv:2511.20347): a smooth clip, narrower for negative advantages.

    A 4/t sigmoid(t (r - 1)), t by the sign of A; mean over each response
    """
    return Objective(STANDARD, SoftGate(positive, negative), sequence_mean)


def dppo_tv(limit: float = TrustRegionTV.low, cap: float = TrustRegionTV.cap) -> Objective:
    """DPPO with total variation (arXiv:2602.04879): a trust region of probabilities around the sampler.

    sg(min(r, cap)) A log pi, zero where p has moved by more than limit in the direction of A; sum / max_tokens
    """
    return Objective(CENTERED, TrustRegionTV(limit, limit, cap), FixedLength(), anchor="sampler")


def dppo_kl(limit: float = TrustRegionKL.low, cap: float = TrustRegionKL.cap) -> Objective:
    """DPPO with the KL of the two-way choice between a token and all others, from the sampler to the policy
    (arXiv:2602.04879).

    sg(min(r, cap)) A log pi, zero where p has moved in the direction of A by a KL above limit; sum / max_tokens
    """
    return Objective(CENTERED, TrustRegionKL(limit, limit, cap), FixedLength(), anchor="sampler")


def icepop(
    low: float = TokenMask.low,
    high: float = TokenMask.high,
    clip_low: float = ClippedRatio.low,
    clip_high: float = 0.28,
) -> Objective:
    """IcePop: tokens on which trainer and sampler disagree are left out. The rest is DAPO's.

    k min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), k = ratio of trainer to sampler if between low and high, else 0
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), token_mean, corrections=(TokenMask(low, high),))


def deepseek_v3_2(clip: float = ClippedRatio.low, kl: float = 1e-3, most: float = OffPolicyMask.most) -> Objective:
    """DeepSeek-V3.2 (arXiv:2512.02556): an unbiased KL, and no bad responses that have become unlikely. The paper
    leaves the numbers open.

    m min(r A, clip(r, 1 - clip, 1 + clip) A) - kl r k3, A = R - group mean, m = 0 where A < 0 and the response's tokens
    are on average more than `most` nats less likely than when sampled; mean over each response
    """
    pull = kl_term(kl, k3, ratio=token)
    corrections = (OffPolicyMask(most),)
    return Objective(CENTERED, ClippedRatio(clip, clip), sequence_mean, corrections=corrections, kl=pull)


def kimi_k1_5(tau: float = 0.1) -> Objective:
    """Kimi k1.5 (arXiv:2501.12599): mirror descent with a squared ratio of the whole response. tau is ours.

    A log pi - tau/2 (log r of the response)^2, A = R - group mean; sum over each response
    """
    check_range("tau", tau, least=0)
    return Objective(CENTERED, reinforce, sequence_sum, terms=(Term(-tau, squared_sequence_log_ratio),))


def kimi_k2_5(low: float = Interval.low, high: float = 2.0, tau: float = 1e-3) -> Objective:
    """Kimi K2.5 (arXiv:2602.02276): no gradient from rewards outside an interval, whatever A's sign. The numbers
    are ours.

    r A if low < r < high, minus tau (log r)^2 everywhere, A = R - group mean; every token counts the same
    """
    check_range("tau", tau, least=0)
    return Objective(CENTERED, Interval(low, high), token_mean, terms=(Term(-2 * tau, squared_log_ratio),))


def vespo(
    power_positive: float = GammaWeight.power_positive,
    rate_positive: float = GammaWeight.rate_positive,
    power_negative: float = GammaWeight.power_negative,
    rate_negative: float = GammaWeight.rate_negative,
) -> Objective:
    """VESPO (arXiv:2602.10693): a smooth weight by the ratio of the whole response to the sampler.

    sg(exp(rate + power log W - rate W)) A log pi, W the product of the token ratios; every token counts the same
    """
    surrogate = GammaWeight(power_positive, rate_positive, power_negative, rate_negative)
    return Objective(STANDARD, surrogate, token_mean, ratio=BoundedProduct(), anchor="sampler")


def topr() -> Objective:
    """TOPR (arXiv:2503.14286): bad responses count less as they become less likely. The baseline and the
    sum are ours.

    sg(c) A log pi, c = 1 where A > 0, else the response's ratio, at most 1; A = R - group mean; sum over each response
    """
    return Objective(CENTERED, tapered, sequence_sum, ratio=sequence_product)


def top_entropy(
    share: float = TopEntropy.share, clip_low: float = ClippedRatio.low, clip_high: float = 0.28
) -> Objective:
    """The 80/20 rule (arXiv:2506.01939): only tokens of high entropy move the policy. The rest is DAPO's.

    DAPO's, for the `share` of the batch's tokens with the most entropy; every token counts the same
    """
    return Objective(STANDARD, ClippedRatio(clip_low, clip_high), token_mean, masks=(TopEntropy(share),))


def clip_cov(
    share: float = CovarianceClip.share,
    low: float = CovarianceClip.low,
    high: float = CovarianceClip.high,
    clip: float = ClippedRatio.low,
) -> Objective:
    """Clip-Cov (arXiv:2505.22617): a few tokens of large covariance of log-prob and advantage are left out.

    min(r A, clip(r, 1 - clip, 1 + clip) A), A = (R - group mean) / group deviation; every token counts the same
    """
    return Objective(STANDARD, ClippedRatio(clip, clip), token_mean, masks=(CovarianceClip(share, low, high),))


def kl_cov(share: float = TopCovariance.share, coefficient: float = 1.0) -> Objective:
    """KL-Cov (arXiv:2505.22617): tokens with the largest covariance are held near their old probability.

    r A, minus coefficient |log r| for the `share` of tokens with the largest covariance; every token counts the same
    """
    check_range("coefficient", coefficient, least=0)
    term = Term(-coefficient, absolute_log_ratio, mask=TopCovariance(share))
    return Objective(STANDARD, importance, token_mean, terms=(term,))


def dro(beta: float = 1e-3) -> Objective:
    """DRO's loss (arXiv:2405.19107) by token, with the group's mean as the value and the policy when the batch was
    made as the reference. beta is ours.

    A log pi - beta/2 (log r)^2, A = R - group mean; every token counts the same
    """
    check_range("beta", beta, least=0)
    return Objective(CENTERED, reinforce, token_mean, terms=(Term(-beta, squared_log_ratio),))


def real(temperature: float = Listwise.temperature, right: float = Signed.right) -> Objective:
    """REAL (arXiv:2602.05630): right responses are separated from wrong ones as by a classifier. A microbatch holds
    whole groups.

    -log(1 + sum over right of e^(-s/t)) - log(1 + sum over wrong of e^(s/t)), s = mean log r; mean over prompts

    With a mask, tokens that are left out still move, as they are in s.
    """
    return Objective(Signed(1.0, right=right), Listwise(temperature), sequence_mean, ratio=sequence)


def distillation(weight: float = 1.0) -> Objective:
    """On-policy distillation: towards a teacher's log-probs of the policy's own responses (sampled reverse KL). Rewards
    are measured, but nothing is learned from them.

    A log pi, A = weight (log-prob of the teacher - of the policy) for each token; every token counts the same
    """
    return Objective(no_advantage, reinforce, token_mean, distillation=weight)
