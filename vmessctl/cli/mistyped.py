"""Words that are not verbs, and what was probably meant. Only a wrong command line imports this."""

from __future__ import annotations

from vmessctl.cli.verbs import BY_VERB, LITERALS, PROGRAM
from vmessd.core import names
from vmessd.core.errors import InvalidValue, NoSuchVM, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

ELSEWHERE = {
    **dict.fromkeys(("remove", "undefine"), "rm"),
    **dict.fromkeys(("define", "new"), "make"),
    "destroy": "stop force",
    **dict.fromkeys(("poweroff", "powerdown", "shutdown", "halt"), "stop"),
    **dict.fromkeys(("boot", "run", "up"), "start"),
    "mem": "ram",
    **dict.fromkeys(("cpus", "vcpus"), "smp"),
    **dict.fromkeys(("iso", "cd"), "cdrom"),
    **dict.fromkeys(("ip", "domifaddr"), "addr"),
    "pause": "suspend",
    "unpause": "resume",
    "events": "watch",
    "logs": "log",
    **dict.fromkeys(("copy", "cp"), "clone"),
    "migrate": "move",
    "resize": "hda",
    "backup": "export",
    "restore": "import",
    **dict.fromkeys(("nic", "nics"), "ifadd"),
    **dict.fromkeys(("shell", "login"), "ssh"),
}
"""Names that other programs give to verbs, such as virsh(1), qm(1) and vmctl(8), which are not understood but
answered with ours: a VM may have such a name, or they mean something else here."""
LIKENESS = 0.6
"""How similar a word must be to a verb to be taken for it, mistyped (difflib, 0 to 1)."""


def no_verb(word: str, more: Collection[str] = ()) -> InvalidValue:
    """Return the error for a word that is not a verb, and none of `more`."""
    suggestion = meant(word, [*BY_VERB, *more])
    return InvalidValue(f"no command {quoted(word)}{suggestion}", hint=f"{PROGRAM} help")


def no_vm_or_verb(word: str, suggestion: str) -> NoSuchVM:
    """Return the error for a word that is neither a VM nor a verb; `suggestion` is from :func:`meant`."""
    return NoSuchVM(f"no VM or command {quoted(word)}{suggestion}", hint=f"{PROGRAM} list, or {PROGRAM} help")


def resembles_verb(word: str) -> bool:
    """Tell whether a word is close to a verb or to what other programs call one. No verb ends with a digit."""
    if word in ELSEWHERE:
        return True
    return not word[-1:].isdecimal() and bool(_closest(word, BY_VERB, LIKENESS))


def _closest(word: str, words: Collection[str], cutoff: float) -> list[str]:
    import difflib  # noqa: PLC0415 -- slow to import

    return difflib.get_close_matches(word, words, n=1, cutoff=cutoff)


def meant(word: str, words: Collection[str], cutoff: float = LIKENESS) -> str:
    """Return "; did you mean ...?" to append to a message; empty if no known word is close.

    A verb that destroys something is not suggested for similar letters, and no other verb in its place. No verb
    is suggested for a word with a digit at its end, which no verb has.
    """
    if ELSEWHERE.get(word, "").partition(" ")[0] in words:
        return f"; did you mean {ELSEWHERE[word]}?"
    if word[-1:].isdecimal():
        words = [each for each in words if each not in BY_VERB]
    begun = [each for each in words if each.startswith(word)]
    near = begun if len(begun) == 1 else _closest(word, words, cutoff)
    if not near or (near[0] in BY_VERB and BY_VERB[near[0]].destroys):
        return ""
    return f"; did you mean {near[0]}?"


def no_verb_among(vms: Sequence[str]) -> InvalidValue:
    """Return the error for words of which none is a verb: several, or one that no VM can have as its name.

    The verb is most likely the second word, as in the original script, or the first that resembles one.
    """
    if vms[0] in names.RESERVED:
        return no_verb(vms[0])
    words = [word for word in (*vms[1:], vms[0]) if word not in LITERALS]
    wrong = next(filter(resembles_verb, words), vms[1])
    if wrong is not vms[0]:
        return no_verb(wrong)
    unknown = no_vm_or_verb(wrong, meant(wrong, BY_VERB))
    return InvalidValue(unknown.message, hint=unknown.hint)
