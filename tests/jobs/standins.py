"""Stand-ins for programs of the system that a test must not touch."""

from __future__ import annotations

from pathlib import Path

# As Debian's: refuses a bad first field and a last line without its newline, says so as it does.
CRONTAB = """\
#!/bin/sh
file='{file}'
case "$1" in
-l) [ -e "$file" ] || {{ echo "no crontab for tester" >&2; exit 1; }}; cat "$file" ;;
-r) rm "$file" ;;
-)  cat > "$file.new.$$"
    if [ -n "$(tail -c1 "$file.new.$$")" ]; then
      echo "new crontab file is missing newline before EOF, can't install." >&2; exit 1
    fi
    if grep -q '^99 ' "$file.new.$$"; then
      printf '"-":0: bad minute\\nerrors in crontab file, can'"'"'t install.\\n' >&2; exit 1
    fi
    sleep {seconds}
    mv "$file.new.$$" "$file" ;;
esac
"""

# Writes down what it was given and in which environment, instead of Python running doodl-batch.
RECORDER = """\
#!/bin/sh
{{ printf '%s\\n' "$@"; echo ---; env; }} > '{log}'
echo "computed"
exit {code}
"""


def install(folder: Path, name: str, text: str) -> Path:
    """Write an executable `name` into `folder`; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def crontab_program(folder: Path, file: Path, *, seconds: float = 0.0) -> Path:
    """A `crontab` whose crontab is `file`; `seconds` is how long it takes to write."""
    return install(folder, "crontab", CRONTAB.format(file=file, seconds=seconds))
