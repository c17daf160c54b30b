"""What the demo tells while it runs, in a technologist's words."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from node.demo.report import Story
from node.demo.verify import Check


class Teller:
    """Lines, progress bars and the verdict on one console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def title(self, folder: Path) -> None:
        """What is going to happen."""
        self._console.print(Text("Midslice demo", style="bold"))
        self._console.print(
            Text(f"A scanner, the node and a PACS on this machine; all of it in {folder}\n")
        )

    def done(self, text: str) -> None:
        """A step that is behind us."""
        self._console.print(Text.assemble(("✓ ", "green"), text), soft_wrap=True)

    def note(self, text: str) -> None:
        """Something by the way."""
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A step whose length nobody knows."""
        with self._console.status(Text(text)):
            yield

    @contextmanager
    def counting(
        self, text: str, total: int, unit: str = "slices"
    ) -> Iterator[Callable[[int], None]]:
        """A step whose length is known; called with how many are done."""
        number = TextColumn("{task.completed:.0f} of {task.total:.0f} {task.fields[unit]}")
        columns = (TextColumn("  {task.description}"), BarColumn(), number)
        shown = self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=not shown) as bar:
            task = bar.add_task(text, total=total, unit=unit)
            yield lambda count: bar.update(task, completed=min(count, total))

    def table(self, checks: Sequence[Check]) -> None:
        """One row a check."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(width=7)
        table.add_column()
        table.add_column(style="dim", overflow="fold")
        for check in checks:
            word = Text("✓ ok", "green") if check.ok else Text("✕ fault", "bold red")
            table.add_row(word, Text(check.name), Text(check.found))
        self._console.print()
        self._console.print(table)

    def verdict(self, story: Story, page: Path, seconds: float, log: str) -> None:
        """Where to look now; `log` is the end of the node's log where something is wrong."""
        faults, comparison = story.faults, story.comparison
        head = (
            f"{len(faults)} of {len(story.checks)} checks failed."
            if faults
            else f"All {len(story.checks)} checks passed, in {seconds:.0f} s."
        )
        lines = [head, "", f"{len(story.received)} slices became {len(story.derived)}."]
        if comparison.places:
            lines[-1] += (
                f" Against the {comparison.acquired} slices that were held back: "
                f"{comparison.generated_db:.2f} dB, linear interpolation "
                f"{comparison.linear_db:.2f} dB."
            )
        lines += ["", f"Report          {page}", f"Derived series  {story.folder}"]
        if faults:
            self.failed(head, None, log)
        self._console.print()
        body = Text("\n".join(lines), overflow="fold")
        self._console.print(Panel(body, border_style="red" if faults else "green", expand=False))

    def failed(self, problem: str, log: Path | None, end: str) -> None:
        """What went wrong, and the end of the log that may say why."""
        self._console.print()
        self._console.print(Text(f"✕ {problem}", style="bold red"), soft_wrap=True)
        if end:
            name = log if log is not None else "the node's log"
            self._console.print(Text(f"The end of {name}:", style="dim"), soft_wrap=True)
            self._console.print(Text(end), soft_wrap=True)
