"""An unpacked wheel holds every module but those run in a checkout, each imports, and torch is all that gramjd loads.

python .ci/check_wheel.py FOLDER
"""

import sys
from importlib import import_module
from pathlib import Path

HEAVY = {"triton", "matplotlib", "hypothesis", "sklearn", "transformers", "lightning", "torchjd", "scipy", "quadprog"}
ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"gramjd": "gramjd", "kernels": "gramjd/kernels", "profiling": "gramjd/profiling"}
CHECKOUT_ONLY = [Path("gramjd/profiling", folder) for folder in ("bench", "gpu", "results")]


def module_name(file: Path) -> str:
    """`gramjd/engine/__init__.py` to `gramjd.engine`."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def main(unpacked: Path) -> None:
    """Exit with a message at the first thing that does not hold."""
    sys.path.insert(0, str(unpacked))
    import_module("gramjd")
    loaded = HEAVY & {name.split(".")[0] for name in sys.modules}
    if loaded:
        sys.exit(f"import gramjd loads {', '.join(sorted(loaded))}")
    extra = [folder for folder in CHECKOUT_ONLY if (unpacked / folder).exists()]
    if extra:
        sys.exit(f"the wheel holds {extra[0]}, which is for a checkout only")
    every = {
        Path(target, file.relative_to(ROOT / folder))
        for folder, target in FOLDERS.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    sources = {file for file in every if not any(file.is_relative_to(folder) for folder in CHECKOUT_ONLY)}
    shipped = {file.relative_to(unpacked) for file in unpacked.glob("gramjd/**/*.py")}
    if sources != shipped:
        sys.exit(f"the wheel and the sources differ by {sorted(map(str, sources ^ shipped))}")
    for file in sorted(shipped):
        try:
            module = import_module(module_name(file))
        except ModuleNotFoundError as error:
            if error.name not in HEAVY:  # a module for an extra may ask for that extra's package
                raise
            continue
        if not Path(str(module.__file__)).is_relative_to(unpacked):
            sys.exit(f"{module_name(file)} came from {module.__file__}")
    print(f"the wheel holds {len(shipped)} modules and they import")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
