"""What a command line means: which VMs, then verbs in turn, each with its arguments and options. Pure.

The grammar is the seed's, `vmess <vmname> <verb> ...`, and a few words that stand alone. No verb is a VM
name, so several VMs may stand before one, and several verbs behind each other:
`vmess leaf spine make ram 2G start`.

A verb takes the arguments it needs first, whatever they look like. Those it may take as well end at the
next verb, or at `--`. A `--` where arguments are still missing has all words up to the next `--` be
arguments: no option and no verb.
"""

from __future__ import annotations

from vmessctl.cli.verbs import (
    ALL,
    BY_VERB,
    COMMANDS,
    ELSEWHERE,
    EVERYWHERE,
    HELP,
    OPTIONS,
    PROGRAM,
    SHORT,
    Command,
    Invocation,
    Option,
    meant,
    no_verb,
)
from vmessd.core import names
from vmessd.core.errors import InvalidValue, quoted, shell_line
from vmessd.core.plainrecord import PlainRecord

VERBS = {command.verb: command for command in COMMANDS if not command.is_global}
"""The verbs that stand behind a VM, and behind each other."""
PATTERN_MARKS = frozenset("*?[")
EVERY = "*"


def is_pattern(word: str) -> bool:
    """Tell whether a word in the place of a VM's name stands for several, as in a shell.

    One with a control character is refused as the impossible name it is.
    """
    return not PATTERN_MARKS.isdisjoint(word) and word.isprintable()


def is_option(word: str) -> bool:
    """Tell whether a word is an option; a lone dash and a negative number are arguments.

    So messages can speak of their value.
    """
    return word.startswith("-") and word != "-" and not word[1].isdecimal()


class Step(PlainRecord):
    """One verb of a line, as far as it has been read."""

    def __init__(self, command: Command, arguments: list[str], options: dict[str, str]) -> None:
        self.command = command
        self.arguments = arguments
        self.options = options

    @property
    def lacks(self) -> bool:
        """There are arguments it needs and has not got."""
        return len(self.arguments) < self.command.needs


class State:
    """What the next word of a line can be; an enumeration, light because importing `enum` takes its time."""

    VMS = "a VM, a verb, or an option"
    NET = "the second word of a net verb, or an option"
    ARGUMENTS = "an argument, an option, or the next verb where no argument is missing"
    QUOTED = "an argument, whatever it looks like, or the `--` that ends them"
    ENDED = "a verb, after the `--` that ended the arguments"
    # After a `--` before the first verb, or behind a word that stands alone, there are no options any more.
    ONLY_VMS = "a VM or a verb"
    ONLY_NET = "the second word of a net verb"
    ONLY_ARGUMENTS = "an argument, or the next verb where no argument is missing"


WITHOUT_OPTIONS = {
    State.VMS: State.ONLY_VMS,
    State.NET: State.ONLY_NET,
    State.ARGUMENTS: State.ONLY_ARGUMENTS,
}
"""The states in which an option may come, and what a `--` that ends all options makes of each."""


class Line:
    """A command line that is read word by word; completion asks it how far a line has come."""

    def __init__(self) -> None:
        self.state = State.VMS
        self.vms: list[str] = []
        self.steps: list[Step] = []
        self.options: dict[str, str] = {}
        """Those before the first verb, and those that are about the line as a whole."""
        self.awaiting: Option | None = None
        """The option whose value comes next, in any state."""
        self.problem: InvalidValue | None = None
        """What is wrong with it, where that may wait for the end: there may be a --help still."""
        self._words: list[str] = []

    @property
    def step(self) -> Step | None:
        """The verb that was read last."""
        return self.steps[-1] if self.steps else None

    @property
    def is_net(self) -> bool:
        """The word `net` was read, and its second word comes next."""
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
            (self._behind if self.steps else self._before)(word)

    def _go(self, state: str) -> None:
        """Come to another state; where options have been ended, it has none either."""
        self.state = WITHOUT_OPTIONS[state] if self.state in WITHOUT_OPTIONS.values() else state

    def _end_options(self) -> None:
        """Read a `--` where options may come."""
        step = self.step
        if step is None or step.command.is_global:
            self.state = WITHOUT_OPTIONS[self.state]
        else:
            self.state = State.QUOTED if step.lacks else State.ENDED

    def _quoted(self, word: str) -> None:
        if word == "--":
            self.state = State.ENDED
        else:
            self.steps[-1].arguments.append(word)

    def _option(self, word: str) -> None:
        flag, equals, value = word.partition("=")
        short = OPTIONS.get(word[:2])
        if short is not None and short.metavar and flag not in OPTIONS:  # its value joined to it, as in -n1
            flag, equals, value = word[:2], "=", word[2:]
        option = SHORT.get(word) or OPTIONS.get(flag)
        if option is None:
            raise InvalidValue(
                f"{quoted(word)} is no option{meant(flag, OPTIONS, 0.75)}", hint=f"{PROGRAM} help"
            )
        if equals and not option.metavar:
            raise InvalidValue(f"{flag} takes no value, not {quoted(value)}")
        if option.metavar and not equals:
            self.awaiting = option
        else:
            self._set(option, value)

    def _set(self, option: Option, value: str) -> None:
        step = self.step
        for_all = step is None or option in (*EVERYWHERE, ALL)
        options = self.options if for_all or step is None else step.options
        options[option.flag] = value

    def _behind(self, word: str) -> None:
        """Read a word behind a verb: an argument, or the next verb."""
        if word in VERBS and self.takes_verb:
            self.steps.append(Step(VERBS[word], [], {}))
            self._go(State.ARGUMENTS)
            return
        self.steps[-1].arguments.append(word)
        if self.state == State.ENDED:
            # A `--` with no verb behind it ended nothing: it means what it does everywhere, no more options.
            self.state = State.QUOTED

    def _before(self, word: str) -> None:
        """Read a word before the first verb: a VM, or that verb."""
        if self.is_net:
            command = BY_VERB.get(f"net {word}")
            if command is None:
                known = ", ".join(verb.partition(" ")[2] for verb in BY_VERB if verb.startswith("net "))
                wrong = f"net takes {known}, not {quoted(word)}"
                self.problem = self.problem or InvalidValue(wrong, hint=f"{PROGRAM} help net")
                return
        elif word == "net":
            self._go(State.NET)
            if self.vms:
                self.problem = InvalidValue("net takes no VM", hint=f"{PROGRAM} help net")
            return
        else:
            command = BY_VERB.get(word)
            if command is None:
                self.vms.append(word)
                return
            self._check_alone(command)
        self.steps.append(Step(command, [], {}))
        self._go(State.ARGUMENTS)

    def _check_alone(self, command: Command) -> None:
        """Find fault with VMs before a word that takes none: nobody is to be led to what concerns them all."""
        if command.is_global and self.vms and not command.many:
            other = ELSEWHERE.get(command.verb, "").split()
            right = shell_line([PROGRAM, *self.vms, *other]) if other else f"usage: {command.usage()}"
            self.problem = InvalidValue(f"{command.verb} takes no VM", hint=right)

    # -- What has been read --

    def invocation(self) -> Invocation:
        """Return what the line asks for, now that all words are read; raises InvalidValue."""
        if self.awaiting is not None:
            raise InvalidValue(
                f"{self.awaiting.flag} needs a value: {self.awaiting.flag} {self.awaiting.metavar}"
            )
        if HELP.flag in self.options:
            told = {flag: value for flag, value in self.options.items() if OPTIONS[flag] in EVERYWHERE}
            return Invocation(BY_VERB["help"], (), tuple(self._verb_among()), told, None)
        if self.problem is not None:
            raise self.problem
        steps = self.steps or [Step(self._without_verb(), [], {})]
        vms = self._vms(steps[0].command)
        self._check_options(steps)
        for step in steps:
            _check(step, vms)
        following: Invocation | None = None
        for step in reversed(steps[1:]):
            following = self._meant(step, vms, following)
        return self._meant(steps[0], vms, following)

    def _meant(self, step: Step, vms: tuple[str, ...], following: Invocation | None) -> Invocation:
        known = {flag: value for flag, value in self.options.items() if step.command.knows(OPTIONS[flag])}
        return Invocation(step.command, vms, tuple(step.arguments), known | step.options, following)

    def _verb_among(self) -> list[str]:
        """Return the words that name a verb, for help about it."""
        if self._words[:1] == ["net"]:
            return self._words[:2]
        return [word for word in self._words if word in BY_VERB][:1]

    def _without_verb(self) -> Command:
        """Return what the line means although it has no verb."""
        if self.is_net:
            return BY_VERB["net show"]
        if not self.vms:
            return BY_VERB["status" if ALL.flag in self.options else "list"]
        if self.vms[0] in names.RESERVED:
            raise no_verb(self.vms[0])
        if len(self.vms) > 1:
            raise no_verb(self.vms[1])
        return BY_VERB["status"]

    def _vms(self, command: Command) -> tuple[str, ...]:
        """Return the VMs of the line, each once: full names, and patterns."""
        usage = f"usage: {command.usage()}"
        if command.is_global and not command.many:
            return ()
        if ALL.flag in self.options:
            if self.vms:
                raise InvalidValue(f"{ALL.flag} stands for all VMs, so none can be named", hint=usage)
            return () if command.is_global else (EVERY,)  # also those that are not made yet
        if not self.vms and not command.is_global:
            raise InvalidValue(f"{command.verb} needs a VM before it", hint=self._put_right() or usage)
        return tuple(dict.fromkeys(word if is_pattern(word) else names.parse(word) for word in self.vms))

    def _put_right(self) -> str:
        """Return the line with the VMs before the verb, where they stand behind it; empty where none do."""
        step = self.steps[0]
        spoken = step.command.arguments.translate(str.maketrans("<>[]|", "     ")).split()
        vms = [word for word in step.arguments if word not in spoken and _may_be_vm(word)]
        # Where a verb takes words of all kinds, only one can be told to be out of place.
        free = step.command.needs or step.command.arguments.endswith("...")
        rest = tuple(word for word in step.arguments if word not in vms)
        if not vms or len(self.steps) > 1 or (free and len(vms) > 1) or not step.command.accepts(len(rest)):
            return ""
        options = self.options | step.options
        return shell_line([PROGRAM, *written(Invocation(step.command, tuple(vms), rest, options))])

    def _check_options(self, steps: list[Step]) -> None:
        """Raise InvalidValue for an option before the verbs that none of them knows."""
        for flag in self.options:
            if not any(step.command.knows(OPTIONS[flag]) for step in steps):
                verbs = ", ".join(dict.fromkeys(step.command.verb for step in steps))
                usage = f"usage: {steps[0].command.usage()}" if len(steps) == 1 else f"{PROGRAM} help"
                raise InvalidValue(f"{flag} is no option of {verbs}", hint=usage)


def _check(step: Step, vms: tuple[str, ...]) -> None:
    """Raise InvalidValue for a verb that cannot be meant so."""
    command, said = step.command, step.arguments
    usage = f"usage: {command.usage()}"
    for flag in step.options:
        if not command.knows(OPTIONS[flag]):
            raise InvalidValue(f"{flag} is no option of {command.verb}", hint=usage)
    if not command.accepts(len(said)):
        if not said:
            if command.method == "Set":
                usage += f"; what it is now: {shell_line([PROGRAM, *_named(vms), 'info'])}"
            raise InvalidValue(f"{command.verb} needs {command.arguments}", hint=usage)
        over = len(said) > command.needs and not command.is_global
        question = meant(said[len(command.arguments.split())], VERBS, 0.75) if over else ""
        wrong = f"{command.verb} takes {command.arguments or 'no argument'}, not {quoted(' '.join(said))}"
        raise InvalidValue(f"{wrong}{question}", hint=usage)
    check_number(command, vms)


def _named(vms: tuple[str, ...]) -> tuple[str, ...]:
    return (ALL.flag,) if vms == (EVERY,) else vms


def _may_be_vm(word: str) -> bool:
    try:
        return is_pattern(word) or bool(names.parse(word))
    except InvalidValue:
        return False


def check_number(command: Command, vms: tuple[str, ...]) -> None:
    """Raise InvalidValue where more VMs are named than a verb can take."""
    if len(vms) > 1 and not command.many:
        usage = f"usage: {command.usage()}"
        raise InvalidValue(f"{command.verb} takes one VM, not {len(vms)}", hint=usage)


def parse(words: list[str]) -> Invocation:
    """Return what a command line asks for; what is to follow hangs on it.

    Raises:
        InvalidValue: it makes no sense; names the word and what would be right.
    """
    line = Line()
    for word in words:
        line.read(word)
    return line.invocation()


def written(invocation: Invocation) -> list[str]:
    """Return the words that mean an invocation of a VM's verb, and what follows on it."""
    shared = {flag: value for flag, value in invocation.options.items() if OPTIONS[flag] in (*EVERYWHERE, ALL)}
    words = [*_flags(shared), *(() if ALL.flag in shared else invocation.vms)]
    step: Invocation | None = invocation
    end: list[str] = []
    while step is not None:
        own = {flag: value for flag, value in step.options.items() if flag not in shared}
        needs = step.command.needs
        plain = not any(
            is_option(word) or (word in VERBS and place >= needs) for place, word in enumerate(step.arguments)
        )
        words += [*end, step.command.verb, *_flags(own), *(() if plain else ("--",)), *step.arguments]
        end = [] if plain else ["--"]
        step = step.then
    return words


def _flags(options: dict[str, str]) -> list[str]:
    return [f"{flag}={value}" if OPTIONS[flag].metavar else flag for flag, value in options.items()]
