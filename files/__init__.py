"""Reading and writing the files of this pack: limits before anything is read, all entries checked, replaced whole."""
