"""The parser of command lines: VMs, then one verb or several, each with arguments and options. Pure.

The grammar is that of the original script, `vmess <vmname> <verb> ...`, plus a few global verbs. No verb is a
VM name, so a line may contain several VMs and several verbs: `vmess leaf spine make ram 2G start`. The first
verb may also stand before the VMs: `vmess start leaf spine`; see :func:`led`.

A verb first takes its required arguments, whatever they look like. Its optional arguments end at the next verb
or at `--`. If required arguments, or the value of a setting, are still missing, `--` makes all words up to the
next `--` arguments, even those that look like options or verbs. Behind the first word of a command for another
program, as of `ssh`, all words are arguments in this way.
"""

from __future__ import annotations

from vmessctl.cli.verbs import (
    ALL,
    BY_VERB,
    EVERYWHERE,
    FREE_TEXT,
    HELP,
    IF_NUMBER,
    LITERALS,
    OPTIONS,
    PROGRAM,
    SHORT,
    VERSION,
    Command,
    Invocation,
    Option,
    spoken,
)
from vmessd.core import names
from vmessd.core.errors import InvalidValue, quoted, shell_line
from vmessd.core.plainrecord import PlainRecord
from vmessd.core.settings import RESTARTS

VERBS = {verb: command for verb, command in BY_VERB.items() if not command.is_global}
"""The verbs that follow a VM or another verb."""
PATTERN_MARKS = frozenset("*?[")
PATTERN_SIGNS = frozenset("*?[]!-")
EVERY = "*"


def is_pattern(word: str) -> bool:
    """Tell whether a word in place of a VM's name is a shell pattern.

    A word with a control character is not: it is refused as an invalid name.
    """
    return not PATTERN_MARKS.isdisjoint(word) and word.isprintable()


def is_option(word: str) -> bool:
    """Tell whether a word is an option; a lone dash and a negative number are arguments.

    Messages can then name the value. So are several words in quotes: `qemu-options '-device virtio-rng-pci'`.
    """
    is_text = " " in word.partition("=")[0]
    return word.startswith("-") and word != "-" and not word[1].isdecimal() and not is_text


def may_be_vm(word: str) -> bool:
    """Tell whether a word can be the name of a VM, or a pattern of names."""
    if is_pattern(word):
        rest = "".join(char for char in word if char not in PATTERN_SIGNS and char != "-")
        return not rest or (rest.isascii() and rest.isalnum())
    try:
        return bool(names.parse(word))
    except InvalidValue:
        return False


def _by_number(command: Command, arguments: list[str] | tuple[str, ...]) -> Command:
    """Return the verb that is meant with these arguments: `smp` for `cpu 4`."""
    if command.verb not in IF_NUMBER or not arguments or not arguments[0].isdecimal():
        return command
    return command if arguments[0] == "486" else BY_VERB[IF_NUMBER[command.verb]]  # 486 is a model


def led(command: Command, words: list[str]) -> list[str]:
    """Return which of the words after a verb that stands first are VMs.

    If any text may be the first argument of the verb, the first word is the VM. If that is so for a later
    argument, all words before the first that cannot be a VM are VMs. Otherwise, VMs may stand anywhere.
    """
    places = _by_number(command, words).alternatives()
    if not places:
        return list(words)
    if FREE_TEXT.intersection(places[0]):
        return [word for word in words[:1] if may_be_vm(word)]
    told = {word for place in places for word in place}
    vms = [may_be_vm(word) and word not in told & LITERALS for word in words]
    if told & FREE_TEXT and False in vms:
        del vms[vms.index(False) :]
    return [word for word, is_vm in zip(words, vms, strict=False) if is_vm]


class Step(PlainRecord):
    """One verb of a line, with the arguments and options read so far."""

    def __init__(
        self, command: Command, arguments: list[str], options: dict[str, str], leads: bool = False
    ) -> None:
        self.command = command
        self.arguments = arguments
        self.options = options
        self.leads = leads
        """The verb stands first: some of its arguments are the VMs of the line."""

    def vms(self) -> list[str]:
        """Return the VMs among the arguments; see :func:`led`."""
        return led(self.command, self.arguments) if self.leads else []

    @property
    def lacks(self) -> bool:
        """Required arguments are missing."""
        return len(self.arguments) - len(self.vms()) < self.command.needs

    @property
    def is_open(self) -> bool:
        """Required arguments are missing, or the value of a setting."""
        nothing_said = len(self.arguments) == len(self.vms())
        return self.lacks or (nothing_said and (self.command.is_setting or self.command.verbatim))

    @property
    def takes_vm(self) -> bool:
        """The next word may be a VM."""
        vms = self.vms()
        if not self.leads or (vms and not self.command.many):
            return False
        return len(led(self.command, [*self.arguments, "x0"])) > len(vms)

    def expects(self, word: str) -> bool:
        """Tell whether a word is one of those that stand for themselves as the next argument."""
        places, place = self.command.alternatives(), len(self.arguments) - len(self.vms())
        if self.command.arguments.endswith("..."):
            place = min(place, len(places) - 1)
        if place >= len(places):
            return False
        disk, *like = names.DISKS
        return word in LITERALS.intersection(places[place]) or (word in like and disk in places[place])


class State:
    """What the next word of a line can be: an enumeration without `enum`, which is slow to import."""

    VMS = "a VM, a verb, or an option"
    NET = "the second word of a net verb, or an option"
    ARGUMENTS = "an argument, an option, or the next verb if no argument is missing"
    QUOTED = "an argument, whatever it looks like, or the `--` that ends them"
    ENDED = "a verb, after the `--` that ended the arguments"
    # After a `--` before the first verb, or after a global verb, there are no more options.
    ONLY_VMS = "a VM or a verb"
    ONLY_NET = "the second word of a net verb"
    ONLY_ARGUMENTS = "an argument, or the next verb if no argument is missing"


WITHOUT_OPTIONS = {
    State.VMS: State.ONLY_VMS,
    State.NET: State.ONLY_NET,
    State.ARGUMENTS: State.ONLY_ARGUMENTS,
}
"""The states that accept options, each with its state after a `--` that ends all options."""


class Line:
    """A command line, read word by word. Completion uses its state."""

    def __init__(self) -> None:
        self.state = State.VMS
        self.vms: list[str] = []
        self.steps: list[Step] = []
        self.options: dict[str, str] = {}
        """Options before the first verb, and those of the whole line."""
        self.awaiting: Option | None = None
        """The option whose value is the next word, in any state."""
        self.problem: InvalidValue | None = None
        """The first error that can wait for the end of the line, because a --help may follow."""
        self._words: list[str] = []

    @property
    def step(self) -> Step | None:
        """The last verb read."""
        return self.steps[-1] if self.steps else None

    def own(self, option: Option) -> Option:
        """Return an option as it is for the last verb read."""
        return option if self.step is None else self.step.command.own(option)

    @property
    def is_net(self) -> bool:
        """The last word was `net`, and its second word comes next."""
        return self.state in (State.NET, State.ONLY_NET)

    @property
    def takes_options(self) -> bool:
        """The next word may be an option."""
        return self.state in WITHOUT_OPTIONS and self.awaiting is None

    @property
    def takes_verb(self) -> bool:
        """The next word may be the next verb."""
        step = self.step
        if step is None or step.command.is_global or step.lacks or self.awaiting is not None:
            return False
        return self.state != State.QUOTED

    def read(self, word: str) -> None:
        """Read the next word; raises InvalidValue."""
        if self.awaiting is not None:
            option, self.awaiting = self.awaiting, None
            self._set(option, word)
        elif self.takes_options and word == "--":
            self._end_options()
        elif self.takes_options and is_option(word):
            self._option(word)
        elif self.state == State.QUOTED:
            self._quoted(word)
        else:
            self._words.append(word)
            (self._after_verb if self.steps else self._before_verb)(word)

    def _enter(self, state: str) -> None:
        """Enter a state; if `--` has ended the options, its variant without them."""
        self.state = WITHOUT_OPTIONS[state] if self.state in WITHOUT_OPTIONS.values() else state

    def _end_options(self) -> None:
        """Read a `--` in a state that accepts options."""
        step = self.step
        if step is None or step.command.is_global:
            self.state = WITHOUT_OPTIONS[self.state]
        else:
            self.state = State.QUOTED if step.is_open else State.ENDED

    def _quoted(self, word: str) -> None:
        if word == "--":
            self.state = State.ENDED
        else:
            self.steps[-1].arguments.append(word)

    def _option(self, word: str) -> None:
        flag, equals, value = word.partition("=")
        short = OPTIONS.get(word[:2])
        if short is not None and short.metavar and flag not in OPTIONS:  # with its value attached, as in -n1
            flag, equals, value = word[:2], "=", word[2:]
        option = SHORT.get(word) or OPTIONS.get(flag)
        if option is None:
            from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

            suggestion = mistyped.meant(flag, OPTIONS, 0.75)
            raise InvalidValue(f"{quoted(word)} is not an option{suggestion}", hint=f"{PROGRAM} help")
        if equals and not option.metavar:
            raise InvalidValue(f"{flag} takes no value, but was given {quoted(value)}")
        if option.metavar and not equals:
            self.awaiting = self.own(option)
        else:
            self._set(option, value)

    def _set(self, option: Option, value: str) -> None:
        step = self.step
        for_all = step is None or option in (*EVERYWHERE, ALL)
        options = self.options if for_all or step is None else step.options
        options[option.flag] = value

    def _after_verb(self, word: str) -> None:
        """Read a word after a verb: an argument, or the next verb."""
        verb = spoken(word)
        takes_verb = self.takes_verb and not self.steps[-1].expects(word)
        if verb is not None and not verb[0].is_global and takes_verb:
            self.steps.append(Step(verb[0], list(verb[1]), {}))
            self._enter(State.ARGUMENTS)
            return
        step = self.steps[-1]
        step.arguments.append(word)
        if self.state == State.ENDED or (step.command.verbatim and len(step.arguments) > len(step.vms())):
            # No verb followed the `--`, so it has its usual meaning: no more options. Or this is the first
            # word of a command, which may have options of its own.
            self.state = State.QUOTED

    def _before_verb(self, word: str) -> None:
        """Read a VM or the first verb."""
        if self.is_net:
            self._second_word(word)
        elif word == "net":
            self._enter(State.NET)
            if self.vms:
                self.problem = InvalidValue("net takes no VM", hint=f"{PROGRAM} help net")
        elif word == VERSION.alias:
            self._set(VERSION, "")
        elif (verb := spoken(word)) is None:
            self.vms.append(word)
        else:
            command, given = verb
            self._check_alone(command)
            leads = not self.vms and ALL.flag not in self.options and (command.many or not command.is_global)
            self._begin(Step(command, list(given), {}, leads))

    def _second_word(self, word: str) -> None:
        """Read the word after `net`."""
        command = BY_VERB.get(f"net {word}")
        if command is not None:
            self._begin(Step(command, [], {}))
        elif word == "help":
            self._begin(Step(BY_VERB[word], ["net"], {}))
        else:
            from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

            known = [verb.partition(" ")[2] for verb in BY_VERB if verb.startswith("net ")]
            harmless = [second for second in known if not BY_VERB[f"net {second}"].destroys]
            wrong = f"net takes {', '.join(known)}, not {quoted(word)}{mistyped.meant(word, harmless)}"
            self.problem = self.problem or InvalidValue(wrong, hint=f"{PROGRAM} help net")

    def _begin(self, step: Step) -> None:
        """Enter the first verb of the line."""
        self.steps.append(step)
        self._enter(State.ARGUMENTS)

    def _check_alone(self, command: Command) -> None:
        """Note an error for VMs before a global verb that takes none: it would act on all of them.

        There is no harm in `newvm help`.
        """
        if command.is_global and self.vms and not command.many and command.verb != "help":
            from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

            other = mistyped.ELSEWHERE.get(command.verb, "").split()
            right = shell_line([PROGRAM.name, *self.vms, *other]) if other else f"usage: {command.usage()}"
            self.problem = InvalidValue(f"{command.verb} takes no VM", hint=right)

    # -- Result --

    def invocation(self) -> Invocation:
        """Return the parsed line after its last word; raises InvalidValue."""
        if self.awaiting is not None:
            raise InvalidValue(
                f"{self.awaiting.flag} needs a value: {self.awaiting.flag} {self.awaiting.metavar}"
            )
        if HELP.flag in self.options:
            everywhere = {flag: value for flag, value in self.options.items() if OPTIONS[flag] in EVERYWHERE}
            return Invocation(BY_VERB["help"], (), tuple(self._verb_among()), everywhere, None)
        if self.problem is not None:
            raise self.problem
        steps = self.steps or [Step(self._without_verb(), [], {})]
        self._take_vms(steps[0])
        vms = self._vms(steps[0].command)
        self._check_options(steps)
        for step in steps:
            _check(step, vms)
        following: Invocation | None = None
        for step in reversed(steps[1:]):
            following = self._meant(step, vms, following)
        return self._meant(steps[0], vms, following)

    def _take_vms(self, step: Step) -> None:
        """Move the VMs after a verb that stands first to the VMs of the line."""
        if not step.leads or ALL.flag in self.options:
            return
        for vm in step.vms():
            step.arguments.remove(vm)
            self.vms.append(vm)

    def _meant(self, step: Step, vms: tuple[str, ...], following: Invocation | None) -> Invocation:
        said = tuple(step.arguments)
        command = _by_number(step.command, said)
        known = {flag: value for flag, value in self.options.items() if command.knows(OPTIONS[flag])}
        word = self.vms[0] if not self.steps and len(self.vms) == 1 else ""
        return Invocation(command, vms, said, known | step.options, following, word)

    def _verb_among(self) -> list[str]:
        """Return the words that name a verb, to show its help."""
        words = self._words[1:] if self._words[:1] == ["help"] else self._words
        if words[:1] == ["net"]:
            return words[:2]
        return [verb[0].verb for word in words if (verb := spoken(word)) is not None][:1]

    def _without_verb(self) -> Command:
        """Return the verb that a line without one means; raises InvalidValue."""
        if self.is_net:
            return BY_VERB["net show"]
        if not self.vms:
            return BY_VERB["status" if ALL.flag in self.options else "list"]
        if self.vms[0] in names.RESERVED or len(self.vms) > 1:
            from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

            raise mistyped.no_verb_among(self.vms)
        return BY_VERB["status"]

    def _vms(self, command: Command) -> tuple[str, ...]:
        """Return the VMs of the line without duplicates: full names, and patterns; raises InvalidValue."""
        usage = f"usage: {command.usage()}"
        if command.is_global and not command.many:
            return ()
        if ALL.flag in self.options:
            if self.vms:
                from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

                if not self.steps and mistyped.resembles_verb(self.vms[0]):
                    raise mistyped.no_verb(self.vms[0])
                raise InvalidValue(f"{ALL.flag} stands for all VMs; do not name any as well", hint=usage)
            return () if command.is_global else (EVERY,)  # also those that are not made yet
        if not self.vms and not command.is_global:
            raise InvalidValue(f"{command.verb} needs a VM", hint=usage)
        return tuple(dict.fromkeys(word if is_pattern(word) else names.parse(word) for word in self.vms))

    def _check_options(self, steps: list[Step]) -> None:
        """Raise InvalidValue for an option before the verbs that none of them accepts."""
        for flag in self.options:
            if not any(step.command.knows(OPTIONS[flag]) for step in steps):
                verbs = ", ".join(dict.fromkeys(step.command.verb for step in steps))
                usage = f"usage: {steps[0].command.usage()}" if len(steps) == 1 else f"{PROGRAM} help"
                raise InvalidValue(f"{flag} is not an option of {verbs}", hint=usage)


def _check(step: Step, vms: tuple[str, ...]) -> None:
    """Raise InvalidValue if a verb has wrong options, arguments or a wrong number of VMs."""
    command, said = step.command, step.arguments
    usage = f"usage: {command.usage()}"
    for flag in step.options:
        if not command.knows(OPTIONS[flag]):
            raise InvalidValue(f"{flag} is not an option of {command.verb}", hint=usage)
    if not command.accepts(len(said)):
        if len(said) < command.needs:
            more = f", not only {quoted(' '.join(said))}" if said else ""
            raise InvalidValue(f"{command.verb} needs {command.arguments}{more}", hint=usage)
        if command.arguments == "<text>":
            quoted_line = shell_line([PROGRAM.name, *vms, command.verb, " ".join(said)])
            wrong = f"{command.verb} takes one text, not {len(said)} words: put quotes around them"
            raise InvalidValue(wrong, hint=quoted_line)
        from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

        over = len(said) > command.needs and not command.is_global
        question = mistyped.meant(said[len(command.arguments.split())], VERBS, 0.75) if over else ""
        wrong = f"{command.verb} takes {command.arguments or 'no argument'}, not {quoted(' '.join(said))}"
        raise InvalidValue(f"{wrong}{question}", hint=usage)
    if command.arguments == "[force]" and said not in ([], ["force"]):
        if command.verb == "restart" and said[0] in (*RESTARTS, "none"):
            usage = shell_line([PROGRAM.name, *vms, "restart-policy", said[0]])
        raise InvalidValue(f"{command.verb} takes force or nothing, not {quoted(said[0])}", hint=usage)
    check_number(command, vms)


def check_number(command: Command, vms: tuple[str, ...]) -> None:
    """Raise InvalidValue if more VMs are named than a verb accepts."""
    if len(vms) > 1 and not command.many:
        usage = f"usage: {command.usage()}"
        raise InvalidValue(f"{command.verb} takes one VM, not {len(vms)}", hint=usage)


def parse(words: list[str]) -> Invocation:
    """Parse a command line; return its first verb, linked to the ones that follow.

    Raises:
        InvalidValue: it is wrong; the message names the word and what would be right.
    """
    line = Line()
    for word in words:
        line.read(word)
    invocation = line.invocation()
    if capitals := tuple(word for word in line.vms if word != word.lower()):
        invocation.capitals = capitals
    return invocation


def without(option: Option, words: list[str]) -> list[str]:
    """Return the words of a command line, which is right, without an option and its value."""
    line, left = Line(), []
    for word in words:
        is_value = line.awaiting is option
        is_flag = line.takes_options and is_option(word) and word.partition("=")[0] == option.flag
        line.read(word)
        if not is_value and not is_flag:
            left.append(word)
    return left


def written(invocation: Invocation) -> list[str]:
    """Return the words of a command line for an invocation and the ones that follow it."""
    shared = {flag: value for flag, value in invocation.options.items() if OPTIONS[flag] in (*EVERYWHERE, ALL)}
    words = [*_flags(shared), *(() if ALL.flag in shared else invocation.vms)]
    end: list[str] = []
    for step in invocation.steps():
        own = {flag: value for flag, value in step.options.items() if flag not in shared}
        needs = step.command.needs
        plain = not any(
            is_option(word) or (place >= needs and _is_step(word)) for place, word in enumerate(step.arguments)
        )
        words += [*end, step.command.verb, *_flags(own), *(() if plain else ("--",)), *step.arguments]
        end = [] if plain else ["--"]
    return words


def _is_step(word: str) -> bool:
    verb = spoken(word)
    return verb is not None and not verb[0].is_global


def _flags(options: dict[str, str]) -> list[str]:
    return [f"{flag}={value}" if OPTIONS[flag].metavar else flag for flag, value in options.items()]
