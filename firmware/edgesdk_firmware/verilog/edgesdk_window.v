// Windows over an image that comes in raster order, one whole window a beat (row by row, its first pixel least significant).
//
// A pixel is a beat of WIDTH bits. Lines lie in a memory of one word per column that holds the ROWS - 1 pixels above; it is read
// and, a cycle later, written in clocked processes. What lies outside is PAD; such pixels take a cycle each but no input.
// An image takes (TOP + HEIGHT + BOTTOM) * (LEFT + COLUMNS + RIGHT) cycles. Where ROWS > 1 the padded line must have at least
// two pixels. YBITS and XBITS hold the counts of padded lines and columns.
module edgesdk_window #(
    parameter integer WIDTH = 8,
    parameter integer HEIGHT = 8,
    parameter integer COLUMNS = 8,
    parameter integer ROWS = 3,
    parameter integer COLS = 3,
    parameter integer DOWN = 1,
    parameter integer RIGHTWARD = 1,
    parameter integer TOP = 0,
    parameter integer LEFT = 0,
    parameter integer BOTTOM = 0,
    parameter integer RIGHT = 0,
    parameter integer YBITS = 4,
    parameter integer XBITS = 4,
    parameter [WIDTH-1:0] PAD = 0
) (
    input  wire                       clk,
    input  wire                       rst,
    input  wire                       s_valid,
    output wire                       s_ready,
    input  wire [WIDTH-1:0]           s_data,
    output reg                        m_valid,
    input  wire                       m_ready,
    output wire [ROWS*COLS*WIDTH-1:0] m_data
);
    localparam integer LAST_Y_COUNT = TOP + HEIGHT + BOTTOM - 1;
    localparam [YBITS-1:0] LAST_Y = LAST_Y_COUNT[YBITS-1:0];
    localparam integer LAST_X_COUNT = LEFT + COLUMNS + RIGHT - 1;
    localparam [XBITS-1:0] LAST_X = LAST_X_COUNT[XBITS-1:0];
    localparam integer FIRST_ROW_COUNT = ROWS - 1;
    localparam [YBITS-1:0] FIRST_ROW = FIRST_ROW_COUNT[YBITS-1:0];
    localparam integer FIRST_COL_COUNT = COLS - 1;
    localparam [XBITS-1:0] FIRST_COL = FIRST_COL_COUNT[XBITS-1:0];
    localparam integer NEXT_ROW_COUNT = DOWN - 1;
    localparam [YBITS-1:0] NEXT_ROW = NEXT_ROW_COUNT[YBITS-1:0];
    localparam integer NEXT_COL_COUNT = RIGHTWARD - 1;
    localparam [XBITS-1:0] NEXT_COL = NEXT_COL_COUNT[XBITS-1:0];

    reg [YBITS-1:0] y, wait_y;
    reg [XBITS-1:0] x, wait_x;
    wire            in_image;
    wire            en = !m_valid || m_ready;
    wire            step = en && (!in_image || s_valid);

    assign s_ready = en && in_image;

    generate
        if (TOP + LEFT + BOTTOM + RIGHT == 0) begin : bare
            assign in_image = 1'b1;
        end else begin : padded
            localparam [YBITS:0] FROM_Y = TOP[YBITS:0];
            localparam integer TO_Y_COUNT = TOP + HEIGHT;
            localparam [YBITS:0] TO_Y = TO_Y_COUNT[YBITS:0];
            localparam [XBITS:0] FROM_X = LEFT[XBITS:0];
            localparam integer TO_X_COUNT = LEFT + COLUMNS;
            localparam [XBITS:0] TO_X = TO_X_COUNT[XBITS:0];
            wire [YBITS:0] row = {1'b1, y} - FROM_Y;
            wire [XBITS:0] col = {1'b1, x} - FROM_X;
            assign in_image = row[YBITS] && {1'b0, y} < TO_Y && col[XBITS] && {1'b0, x} < TO_X;
        end
    endgenerate

    // Where we are, and how many lines and columns are left before the next window ends.
    always @(posedge clk) begin
        if (step) begin
            x <= x == LAST_X ? {XBITS{1'b0}} : x + 1'b1;
            wait_x <= x == LAST_X ? FIRST_COL : wait_x == 0 ? NEXT_COL : wait_x - 1'b1;
            if (x == LAST_X) begin
                y <= y == LAST_Y ? {YBITS{1'b0}} : y + 1'b1;
                wait_y <= y == LAST_Y ? FIRST_ROW : wait_y == 0 ? NEXT_ROW : wait_y - 1'b1;
            end
        end
        if (rst) begin
            x <= {XBITS{1'b0}};
            y <= {YBITS{1'b0}};
            wait_x <= FIRST_COL;
            wait_y <= FIRST_ROW;
        end
    end

    reg             taken, ends;
    reg [WIDTH-1:0] pixel;

    always @(posedge clk) begin
        if (en) begin
            taken <= step;
            m_valid <= taken && ends;
        end
        if (step) begin
            ends <= wait_x == 0 && wait_y == 0;
            pixel <= in_image ? s_data : PAD;
        end
        if (rst) begin
            taken <= 1'b0;
            m_valid <= 1'b0;
        end
    end

    // The column that a pixel completes, its top least significant.
    wire [ROWS*WIDTH-1:0] column;

    generate
        if (ROWS == 1) begin : line
            assign column = pixel;
        end else begin : lines
            reg [(ROWS-1)*WIDTH-1:0] memory [0:LEFT+COLUMNS+RIGHT-1];
            reg [(ROWS-1)*WIDTH-1:0] above;
            reg [XBITS-1:0]          here;
            assign column = {pixel, above};
            always @(posedge clk) begin
                if (step) above <= memory[x];
                if (en && taken) memory[here] <= column[ROWS*WIDTH-1:WIDTH];
            end
            always @(posedge clk) if (step) here <= x;
        end
    endgenerate

    genvar row;
    generate
        for (row = 0; row < ROWS; row = row + 1) begin : shift
            reg [COLS*WIDTH-1:0] pixels;
            assign m_data[row*COLS*WIDTH+:COLS*WIDTH] = pixels;
            if (COLS == 1) begin : single
                always @(posedge clk) if (en && taken) pixels <= column[row*WIDTH+:WIDTH];
            end else begin : several
                always @(posedge clk) if (en && taken) pixels <= {column[row*WIDTH+:WIDTH], pixels[COLS*WIDTH-1:WIDTH]};
            end
        end
    endgenerate
endmodule
