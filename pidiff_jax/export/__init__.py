"""What leaves a run: files in other programs' formats, which are read again and drawn from before they appear.

It may import everything but `launch`; nothing but `launch` imports it.
"""
