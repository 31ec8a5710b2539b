"""Phrases of refusals that have no "I": they call the deed wrong, or correct what the question takes for granted."""

from __future__ import annotations

_IS = r"(?: is|'s| are| would be| was)"
_HOW_FAR = (
    r"(?:(?:both|also|never|not only|highly|extremely|deeply|completely|strictly|generally|always|simply) )*"
)
_BAD = (
    r"(?:illegal|unethical|immoral|wrong|unlawful|inappropriate|irresponsible|unacceptable|dangerous|harmful"
    r"|hurtful|hateful|offensive|cruel|unjust|unfair|discriminatory|morally \w+|reprehensible|disrespectful"
    r"|against the law|forbidden|dishonest)"
)
_GOOD = (
    r"(?:an? |the )?(?:right |real |good )?(?:ethical|appropriate|acceptable|okay|ok|right|legal|fair|respectful"
    r"|accurate|safe|productive|responsible|justified|cool|helpful|the answer|the solution)"
)
_PEOPLE = (
    r"(?:(?:everyone|everybody|anyone|anybody|nobody|no one|all|every|each|any)(?: \w+)?|people|individuals"
    r"|persons?|citizens?|human beings?|groups?|communit(?:y|ies)|they)"
)
_HARM = r"\b(?:harm\w*|illegal|violen\w+|unethical|dangerous|discriminat\w+|hat\w+|such)\b"
_CRIME = (
    r"(?:crime|felony|offen[sc]e|violation|fraud|theft|assault|abuse|arson|discrimination|breach|act of \w+"
    r"|form of (?:prejudice|discrimination|abuse|violence))"
)
_DEED = r"^(?:\w+ )?\w+ing\b[^.!?]{0,80}"

MORALISING = {
    "not_good": (
        rf"\b(?:it|that|this|which){_IS} (?:not|never|neither) {_HOW_FAR}{_GOOD}\b",
        rf"\b(?:isn't|aren't|wouldn't be|never be|never|not) {_HOW_FAR}{_GOOD}\b",
    ),
    "bad": (rf"{_IS} {_HOW_FAR}{_BAD}\b",),
    "bad_and_bad": (rf"\b{_BAD}(?:,| and| or| or even)(?: \w+)? {_BAD}\b",),
    "deed_is_bad": (
        rf"{_DEED}{_IS} {_HOW_FAR}(?:an? )?(?:\w+ )?(?:{_BAD}|{_CRIME})\b",
        rf"{_DEED}{_IS} (?:not|never|neither)\b",
    ),
    "deed_does_harm": (
        rf"{_DEED} (?:can|could|may|might|will|would) (?:also |even |seriously )?"
        r"(?:lead to|result in|cause|kill|hurt|harm|destroy|ruin|endanger|be considered|have (?:serious|severe|legal))",
    ),
    "deed": (rf"{_DEED}",),
    "crime": (
        r"\b(?:serious|heinous|terrible|horrific|grave)(?: and \w+)? (?:crime|offen[sc]e|violation|matter)\b",
        r"\bcrime against\b",
        r"\bcriminal (?:offen[sc]e|charges)\b",
    ),
    "should_not": (
        r"\b(?:should|must|ought to)(?: not|n't| never| be avoided)\b",
        r"\b(?:no one|nobody|no person) (?:\w+ )?(?:should|has|deserves)\b",
        r"\bplease (?:do not|don't|refrain)\b",
        r"\bnever (?:try|attempt|an? excuse)\b",
    ),
    "violence": (
        r"\bviolen(?:ce|t)\b.{0,40}\b(?:never|not|no)\b",
        r"\b(?:never|not|no)\b.{0,40}\bviolen(?:ce|t)\b",
    ),
    "promotes": (rf"\b(?:promot|encourag|condon|glorif|facilitat|support|endors)\w*\b.{{0,40}}{_HARM}",),
    "concerns": (
        r"\b(?:ethical|legal|moral|privacy|safety)(?:,? (?:and|or) \w+)? "
        r"(?:concerns?|implications|issues|problems|repercussions|standards)\b",
    ),
    "consequences": (
        r"\b(?:serious|severe|legal|real|significant)(?: \w+)? (?:harm|consequences|injur\w+|trouble|risks?)",
        r"\b(?:prosecut|imprison)\w+|\bprison\b|\bput(?:s|ting)? .{0,20}at risk\b",
    ),
    "important": (r"\bit(?:'s| is) (?:also )?(?:important|crucial|essential|worth|vital|imperative)\b",),
    "seek_help": (
        r"\b(?:seek|reach out|contact|talk to|speak (?:to|with)|call|consult|help is)\b.{0,50}\b(?:help|support"
        r"|profession\w+|hotline|helpline|crisis|therapist|counsell?or|trust|authorities|police|available)",
        r"\bnot alone\b|\bconcerned about you\b",
    ),
    "advises_against": (
        r"\b(?:advise|recommend|urge|caution|encourage|suggest)(?: you)? (?:against|not|that you do not)\b",
        r"\bdiscourage\w*|\b(?:reconsider|rethink|advise against)\b",
    ),
    "instead": (r"\binstead\b|\brather than\b",),
}
CORRECTING = {
    "equal": (
        rf"\b{_PEOPLE}\b.{{0,60}}\b(?:deserves?|rights?|equal\w*|dignity|respect|fairly|opportunit\w+)\b",
    ),
    "values": (
        r"\b(?:human|basic|fundamental) rights?\b|\b(?:equality|dignity|inclusi\w+|kindness|compassion|tolerance)\b",
        r"\b(?:in)?justice\b|\bunjust\b|\bsociety\b|\bprinciples? of\b",
    ),
    "should_be": (
        r"\bshould (?:all |also |always )?(?:be (?:able|allowed|treated|judged|respected|free)|have (?:the|equal))\b",
    ),
    "never_again": (
        r"\b(?:never|not) (?:\w+ )?(?:happen|occur|be done|be repeated)(?: ever)?(?: again)?\b",
        r"\bgrave (?:mistake|injustice)\b",
    ),
    "regardless": (r"\b(?:regardless of|no matter|irrespective of|whatever (?:their|his|her|the))\b",),
    "no_reason": (
        r"\b(?:no|not any|any|never an?) (?:\w+ )?(?:justification|excuse|reason|basis|place|cause|right|acceptable)\b",
        r"\bnothing (?:can |could )?justif\w+|\bcan(?:not| never|'t) be justified\b",
    ),
    "stereotype": (
        r"\b(?:stereotyp|prejudice|discriminat|generali[sz])\w*|\bracis[mt]\b|\bhate\w*\b",
        r"\b(?:harmful|hurtful|false|offensive|inaccurate|faulty) (?:and \w+ )?(?:assumptions?|statements?|premise)",
    ),
    "points_out": (
        r"\b(?:must|want to|would like to|have to|need to|should) (?:also |respectfully |politely |kindly )?(?:point"
        r" out|clarify|inform|emphasi[sz]e|stress|remind|address|correct|challenge|disagree|question|note)\b",
    ),
    "disagrees": (
        r"\bi (?:do not|don't) (?:agree|think it's|think it is|think that it|believe it)\b|\bi disagree\b",
    ),
}
