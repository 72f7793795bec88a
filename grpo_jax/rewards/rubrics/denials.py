"""How English denies something: words before it in the same clause, and what is said of it after.

Denials in one clause take each other back in pairs ("do not skip Namba"). Words that look like a denial and are none
are taken out first ("do not forget Namba", "if you do not eat fish, try Namba"). These lists are a reading by rules:
what they do not know denies nothing.
"""

import functools
import re

NOT = r"(?:\bnot|n't|\bnever|\bcannot)"
PRAISE = (  # "do not miss", "will not be sorry": the opposite of a fault
    r"miss|missed|forget|overlook\w*|regret|hesitate|worry|fear|afraid|mind|wait|need|require|disappoint\w*|resist"
    r"|beat"
    r"|beaten|fail|hurt|sorry|underestimate\w*|doubt"
)
MILD = (  # what something is said not to be, without being ruled out
    r"only|just|merely|far|bad|least|too|very|so|that|as|quite|always|necessarily|expensive|cheap|crowded"
    r"|difficult|hard"
    r"|busy|quiet|boring|dull|empty|closed|dangerous|unsafe|secret|alone|large|small|big|the only"
    r"|a secret|easy|miss|close"
)
GO = r"(?:go|head|try|visit|choose|pick|take|walk|eat|see|come)"

HARMLESS = re.compile(
    rf"\b(?:if|when|once|since|because|unless|although|though|while)\b[^,.;!?]{{1,60}},"
    rf"|\b(?:avoid|skip|leav|ignor|forget)\w*\b[^,.;!?]{{1,60}}? and (?:then |instead )?{GO}\b"
    rf"|(?:{NOT}|\b(?:few|none|nothing|nowhere|nobody|no one|no \w+))\b[^,.;!?]{{0,40}}"
    r"\b(?:better|finer|nicer|tastier)(?: \w+){0,2} than\b|\bno \w+ like\b"
    rf"|{NOT}\b[^,.;!?]{{0,60}}\b(?:until|till|unless)\b"
    rf"|{NOT}(?: \w+){{0,3}} (?:{PRAISE})\b|\bneed(?:s)? not\b"
    rf"|\bnot (?:{MILD}|to mention|surprising(?:ly)?|in vain|for nothing|until)\b"
    r"|\b(?:not|nothing) (?:to )?be (?:missed|skipped|overlooked|ignored|beaten)\b|\bnever a dull\b"
    r"|\bno (?:doubt|wonder|matter|problem|question|better|finer|later|more|less|fewer|need|surprise|shortage|lack"
    r"|end)\b"
    r"|\bwithout (?:a |any )?(?:doubt|question|fail|hesitation)\b|\bsecond to none\b|\bnone other than\b"
    r"|\bnothing (?:but|beats|compares|tops|like|less than|wrong|comes close)\b|\b(?:nowhere|none) but\b"
    r"|\bwhy not\b|\bwhether or not\b|\bif not\b|\blook no further than\b|\bca(?:nno|n')t go wrong\b"
    r"|\bavoid(?:s|ing)? (?:the |any |all |long |big )*(?:crowds?|queues?|lines?|rush|heat|traffic|wait|tourists?"
    r"|chains?)\b"
)
DENIAL = re.compile(
    r"\bnot\b|n't\b|\bcannot\b|\bnever\b|\bno\b|\bnone\b|\bnothing\b|\bnobody\b|\bneither\b(?:.*\bnor\b)?|\bnor\b"
    r"|\bwithout\b|\bavoid(?:s|ed|ing)?\b|\bskip(?:s|ped|ping)?\b|\bignor(?:e|es|ed|ing)\b|\bpass on\b|\bbeware\b"
    r"|\bdoubt(?:s|ful)?\b|\bhate\b|\bdislike\b|\bmistake (?:to|of)\b|\bopposed to\b|\belse than\b|\bexcept\b"
    r"|\bexcluding\b|\bexception of\b|\binstead of\b|\brather than\b|\bother than\b"
    r"|\bbetter than\b|\b(?:any|every)(?:where|thing|one|body)(?: else)? but\b|\b(?:all|any|every) (?:\w+ )?but\b"
    r"|\b(?:stay|keep|steer) (?:away|clear|out)\b|\bfar from\b|\bnowhere\b|\boutside of\b"
    r"|\b(?:hardly|barely|rarely|scarcely)\b"
    r"|\b(?:false|untrue|wrong|myth|lie) that\b|\brefuse\b|\bforget\b|\bleave out\b"
    r"|\b(?:advi[sc]e|recommend|warn|decide)\w* against\b"
)
NEAR = re.compile(r"\bunlike(?: \w+){0,2}\s*\Z")  # denies what follows it at once, and nothing later
SET_ASIDE = re.compile(r"\b(?:leav(?:e|es|ing)|left|count|rule|cross)(?: the)?\s*\Z")

QUOTE = r"""["')\]*_]*"""
BE = r"(?:is|are|was|were|seems?|looks?|(?:has|have|had) been)"
CLAUSE_WORD = r"(?:because|when|where|since|which|who|while|if|as|it|they|you|we|i|before|after|until)"
OTHERS = rf"(?:(?:,|,? and|,? or) [\w-]+){{0,3}}?(?:\s+(?!{CLAUSE_WORD}\b)\w+){{0,3}}?"  # of the same subject
BADLY = (
    r"(?:closed|shut)(?! (?:on|at|between|until|till|in|after|before|from|during)\b)|demolished|destroyed"
    r"|abandoned|gone|overrated|elsewhere|no longer|nowhere|best avoided|to be avoided"
    r"|worth skipping|dangerous|unsafe|awful|terrible|horrible|disgusting|false|wrong|unlikely|out of the question"
    r"|no (?:good|place|use|option|choice)\b|the last place"
    r"|(?:an?|the) (?:\w+ )?(?:bad|poor|wrong|worst|terrible|awful|tourist trap|waste|rip-?off"
    r"|mistake|disaster|nightmare)"
    r"|far from (?:good|great|ideal|perfect|the best)"
)
IT = r"(?:it|that|this|them|there|that place|this place)"
LEAVE = rf"(?:(?:skip|avoid|ignore|forget|leave) (?:about )?{IT}\b|(?:stay|keep) away\b|steer clear\b)"
AFTER = re.compile(
    rf"{QUOTE}(?:'s)?{OTHERS}\s+(?:is|are|was|were|has|have|does|do|did|should|would|can|ca|will|wo|could|must|ai)"
    rf"(?:n't|\s?not|\snever|\sneither)\b(?! (?:an? |the )?(?:{MILD}|{PRAISE})\b)"
    r"(?! (?:to )?be (?:missed|skipped|avoided|overlooked|ignored|beaten|underestimated|forgotten)\b)"
    rf"|{OTHERS}\s+{BE} (?:\w+ )?(?:{BADLY})\b|\s+(?:closed|shut down)\b|\s+\w+ (?:every|any)thing (?:but|except)\b"
    rf"|\s+used to (?:be|have)\b|\s+no longer\b"
    r"|\s+never (?!disappoint|sleep|close|fail|stop|end|get|gets|let)"
    r"|(?:\s+(?:is|are|should|must|can|could|needs?|ought|to|be|best|better|probably|really|usually))+"
    r"\s+(?:avoided|skipped|ignored|excluded|left out|given a miss)\b"
    r"|\s+(?:has|have|had|offers?|sells?|serves?|contains?|gives?) (?:no|nothing|hardly any|barely any|zero)\b"
    r"(?! (?:shortage|lack|end|equals?|rivals?|match|need|less|fewer|limit|entrance|entry|cover|dress|closing))"
    r"|\s+(?:hardly|barely|scarcely|lacks?|sucks|ceased)\b|\s+a (?:miss|wide berth|pass)\b"
    r"|,?\s+(?:excluded|excepted|aside)\b"
)
OUT = re.compile(r"\s+(?:out|off|aside|alone)\b")
# "Namba? No.", "Namba: avoid it", "Namba (closed)", "Namba, no thanks", "Namba is loud; skip it."
REPLY = re.compile(
    rf"{QUOTE}\s*(?:[?:(\u2013\u2014-]+|\.\.\.){QUOTE}\s*"
    r"(?:no\b(?! (?:doubt|wonder|better))|avoid\b|never\b|skip\b|nope\b|closed\b(?! (?:on|at|in|until|from))"
    r"|beware\b|overrated\b"
    r"|(?:absolutely|definitely|certainly|of course|surely|please) not\b"
    r"|(?:do not|don't) (?:go|bother|visit|eat|stop)\b|not (?:recommended|worth|good)\b)"
    rf"|{QUOTE},\s*(?:no(?: thanks| thank you| way)?|nope|never)\s*(?:[.!,;)\n]|\Z)"
    rf"|[^.!?\n]{{0,60}}(?:[,;\u2013\u2014-]|\band\b|\bso\b|\bbut\b)\s*(?:so |and |please )?{LEAVE}"
)

SHORT = re.compile(r"\b((?:do|does|did|is|are|was|were|would|could|should|ca|wo|has|have|ai)n)t\b")
ASIDE = re.compile(r"(\bnot|n't|\bnever), ([^,.;!?\n]{1,40}),")
TURN = re.compile(
    r",? (?:however|on the other hand|unfortunately|sadly|though|alas|in fact), (?=(?:is|are|was|were|has|have|do"
    r"|does|can)\b)"
)
STRUCK = re.compile(r"~~[^~\n]{1,300}~~|<(s|del|strike)>[^<]{0,300}</\1>")


def spelled_out(text: str) -> str:
    """A text in which `dont` has its apostrophe, and a denial no insertion: "do not, ever, go" is "do not ever go"."""
    return TURN.sub(" ", ASIDE.sub(r"\1 \2", SHORT.sub(r"\1't", text)))


@functools.lru_cache(maxsize=4096)  # a text that repeats itself has the same words before each mention
def is_denial(before: str) -> bool:
    """Whether the words before a mention, in its clause, deny it: an odd number of denials."""
    return (len(DENIAL.findall(HARMLESS.sub(" ", before))) + (NEAR.search(before) is not None)) % 2 == 1


def is_denied_after(text: str, start: int, end: int, closing: int) -> bool:
    """Whether what follows a mention denies it. Its clause ends at `closing`; a reply may follow that."""
    if AFTER.match(text, end, closing) or REPLY.match(text, end):
        return True
    return OUT.match(text, end, closing) is not None and SET_ASIDE.search(text, max(start - 20, 0), start) is not None
