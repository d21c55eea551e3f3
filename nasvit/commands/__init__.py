"""What the commands of `nasvit.cli` do and show, one file each."""
