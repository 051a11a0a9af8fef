"""make dist: dist/taas.pyz, everything in one file, and dist/taas.tar.gz, the scripts with pyotp beside them;
dist/SHA-256SUMS tells whether they arrived as they were made: sha256sum -c SHA-256SUMS.

pyotp comes from the package index, pinned by version and hash in requirements.txt.  The same sources give
the same octets: entries are sorted and dated by SOURCE_DATE_EPOCH, or by the last commit.
"""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
DIST = TOP / "dist"
SCRIPTS = ("taas.py", "taas_admin.py", "taas_agent.py", "make_cert.py")
PACKAGES = ("taaslib", "taasadmin")
PAPERS = ("taas.ini.example", "README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE")
EPOCH_OF_ZIP = 315532800  # 1980-01-01: a zip entry can't be older

Files = dict[str, bytes]


def main() -> int:
    code = read(*SCRIPTS)
    for package in PACKAGES:
        code |= {f"{package}/{path.name}": path.read_bytes() for path in (TOP / package).glob("*.*")}
    papers = read(*(name for name in PAPERS if (TOP / name).exists()))
    papers |= {f"contrib/{path.name}": path.read_bytes() for path in (TOP / "contrib").iterdir()}
    papers |= {f"docs/{path.name}": path.read_bytes() for path in (TOP / "docs").glob("*.md")}
    libraries = pinned_libraries()
    date = source_date()
    DIST.mkdir(exist_ok=True)
    main_py = {"__main__.py": (TOP / "tools" / "dist_main.py").read_bytes()}
    write_pyz(DIST / "taas.pyz", code | libraries | main_py | read("LICENSE"), date)
    write_tar(DIST / "taas.tar.gz", "taas", code | libraries | papers, date)
    sums = ""
    for path in (DIST / "taas.pyz", DIST / "taas.tar.gz"):
        sums += f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        print(f"{path.relative_to(TOP)}  {path.stat().st_size // 1024} KiB")
    (DIST / "SHA-256SUMS").write_text(sums, newline="\n")
    return 0


def read(*names: str) -> Files:
    return {name: (TOP / name).read_bytes() for name in names}


def pinned_libraries() -> Files:
    """The files of each package in requirements.txt, its licence included."""
    files: Files = {}
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
        pinned = ["--require-hashes", "--no-deps", "--only-binary", ":all:"]
        source = ["--requirement", str(TOP / "tools" / "requirements.txt"), "--dest", folder]
        subprocess.run([*pip, *pinned, *source], check=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    package, _, rest = name.partition("/")
                    if not package.endswith(".dist-info"):
                        files[name] = archive.read(name)
                    elif Path(rest).name.startswith("LICENSE"):
                        files[f"{package.partition('-')[0]}/LICENSE"] = archive.read(name)
    return files


def source_date() -> int:
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        return max(int(epoch), EPOCH_OF_ZIP)
    last_commit = ["git", "log", "-1", "--format=%ct"]
    try:
        done = subprocess.run(last_commit, cwd=TOP, capture_output=True, text=True)
        return max(int(done.stdout), EPOCH_OF_ZIP)
    except (OSError, ValueError):  # no git, or not a clone
        return EPOCH_OF_ZIP


def write_pyz(path: Path, files: Files, date: int) -> None:
    content = io.BytesIO()
    content.write(b"#!/usr/bin/env python3\n")  # the archive counts its offsets from here on
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, time.gmtime(date)[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever we are built
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    path.write_bytes(content.getvalue())
    path.chmod(0o755)


def write_tar(path: Path, folder: str, files: Files, date: int) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(f"{folder}/{name}")  # owned by nobody in particular: uid 0, no names
            entry.size, entry.mtime = len(data), date
            entry.mode = 0o755 if name in SCRIPTS else 0o644
            archive.addfile(entry, io.BytesIO(data))
    path.write_bytes(gzip.compress(content.getvalue(), mtime=date))


if __name__ == "__main__":
    raise SystemExit(main())
