"""Judging pictures: is it the subject, does it follow the prompt, is the prior intact?"""
