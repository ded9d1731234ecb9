/* bench_text.h - what --bench fills the context with when it is given no prompt. */
#pragma once

static const char bench_text[] =
    "The lighthouse at the end of the long spit had been dark for eleven years when Marta Oduya came to live in it. "
    "The harbour board had sold the building for less than the price of a fishing boat, on the condition that whoever "
    "bought it would keep the roof in order and let the tide gauge in the cellar be read twice a month. She agreed to "
    "both without asking what the roof would cost. In the first winter she learned. Slates went over the cliff in "
    "every gale, and she replaced them one at a time, lying flat on a ladder that she had tied to the railing of the "
    "lamp room with four different knots, because she trusted none of them alone.\n\n"
    "The man who read the gauge was called Piet. He was a surveyor by training and had spent half of his life "
    "measuring things that other people argued about: the edges of fields, the depth of channels, the height of "
    "floods that had already gone down. He said that the sea had risen by nine centimetres since the gauge was put "
    "in, and that nobody in the town wanted to hear it. \"They want a number that they can use,\" he said, \"and this "
    "is only a number that is true.\" Marta wrote it on the wall of the cellar in pencil, with the date, and after "
    "that he did the same on every visit, so that the wall slowly turned into a graph.\n\n"
    "In March a box arrived from the archive of the lamp makers. It held the original drawings of the lens: eight "
    "panels of ground glass, each built from twenty-three prisms, which together would take the light of a paraffin "
    "flame and throw it for forty kilometres. Two of the panels were missing from the lamp room. She had thought "
    "that they were stolen, but a note on the last sheet said otherwise. They had been taken out in 1941, wrapped in "
    "sailcloth, and lowered into the dry well under the stairs, so that the lamp could not be lit by anyone who did "
    "not know of them. It took her a day to find the well and another to open it. The glass was whole.\n\n"
    "She did not tell the board. She cleaned the prisms with vinegar and newspaper, as the drawings advised, and "
    "she counted them: 184 in all, no chips, one hairline crack. Then she asked Piet to hold the ladder. He looked up "
    "at the frame for a long time, and asked what a lamp was for, now that every boat carried a receiver and a map "
    "that drew itself. She said that she had thought about that, and that the answer was in the cellar. A thing "
    "could be of no use to anyone and still be true. He laughed, took off his coat, and held the ladder.\n\n";
