// Elements in another order: one comes and one goes a cycle, while an inference is written to one half of a memory the one before
// is read from the other.
//
// A word of INDEX (memory file, hexadecimal) holds which of the SIZE elements goes next, ABITS bits, and above them whether it is
// a zero instead; COUNT words. SIZE and COUNT <= 2**ABITS.
module edgesdk_reorder #(
    parameter integer WIDTH = 8,
    parameter integer SIZE = 16,
    parameter integer COUNT = 16,
    parameter integer ABITS = 4,
    parameter INDEX = ""
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             s_valid,
    output wire             s_ready,
    input  wire [WIDTH-1:0] s_data,
    output reg              m_valid,
    input  wire             m_ready,
    output wire [WIDTH-1:0] m_data
);
    localparam integer LAST_IN_COUNT = SIZE - 1;
    localparam [ABITS-1:0] LAST_IN = LAST_IN_COUNT[ABITS-1:0];
    localparam integer LAST_OUT_COUNT = COUNT - 1;
    localparam [ABITS-1:0] LAST_OUT = LAST_OUT_COUNT[ABITS-1:0];

    reg [ABITS:0] rom [0:COUNT-1];
    generate
        if (INDEX != "") begin : filled  // tools that read this module alone have no file
            initial $readmemh(INDEX, rom);
        end
    endgenerate

    reg [WIDTH-1:0] memory [0:(2<<ABITS)-1];
    reg [WIDTH-1:0] word;
    reg [ABITS:0]   index;
    reg [ABITS-1:0] place, position;
    reg [1:0]       full;
    reg             write_half, read_half, index_half, index_valid, index_last, zero;

    wire en = !m_valid || m_ready;
    wire put = s_valid && s_ready;
    wire look = en && full[read_half];

    assign s_ready = !full[write_half];
    assign m_data = zero ? {WIDTH{1'b0}} : word;

    always @(posedge clk) begin
        if (put) memory[{write_half, place}] <= s_data;
        if (look) index <= rom[position];
        if (en && index_valid) word <= memory[{index_half, index[ABITS-1:0]}];
    end

    always @(posedge clk) begin
        if (put) begin
            place <= place == LAST_IN ? {ABITS{1'b0}} : place + 1'b1;
            if (place == LAST_IN) begin
                full[write_half] <= 1'b1;
                write_half <= !write_half;
            end
        end
        if (look) begin
            index_half <= read_half;
            index_last <= position == LAST_OUT;
            position <= position == LAST_OUT ? {ABITS{1'b0}} : position + 1'b1;
            if (position == LAST_OUT) read_half <= !read_half;
        end
        if (en) begin
            index_valid <= look;
            m_valid <= index_valid;
            zero <= index[ABITS];
            if (index_valid && index_last) full[index_half] <= 1'b0;
        end
        if (rst) begin
            place <= {ABITS{1'b0}};
            position <= {ABITS{1'b0}};
            full <= 2'b00;
            write_half <= 1'b0;
            read_half <= 1'b0;
            index_valid <= 1'b0;
            m_valid <= 1'b0;
        end
    end
endmodule
